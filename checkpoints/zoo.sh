#!/usr/bin/env bash
# make zoo DATA=… PHOTOS=…: the trainings behind the files of this folder, some hours on a CPU. The same line goes on after
# an interruption. Give it videos only that are not held out; what it makes lies in runs/zoo.
set -euo pipefail
data=$1 photos=$2 out=runs/zoo
mkdir -p "$out"

prepare() { test -f "$out/$1/prepared.json" || siammae data prepare packed "$data" --out "$out/$1" --fps 15 --quality 95 --short-side "$2"; }
train() { siammae train --root "$out" --resume once --preset micro --batch-size 8 --visits 4 --repeated-sampling 1 --futures 2 --workers 0 "$@"; }
pack() { test -f "$out/$2" || siammae zoo pack "$(cd "$out/checkpoints" && ls -d "$1"* | tail -n 1)" --root "$out" --out "$out/$2"; }

prepare packed128 128
prepare packed own

# 64 pixels, normalised targets, plain video: the features
siammae learn --data "$data" --out "$out/learn"

# 64 pixels, normalised targets, a curriculum of known shifts and video: the motion
train --data "$out/packed128" --prefix curriculum_ --epochs 150 --warmup-epochs 8 --ema 0.999 --mask-ratio 0.75 \
  --schedule "0 shifted_patches 0.75; 24 mixed:shifted_patches=1,video_shifted=1; 80 mixed:video=1,video_shifted=1,jittered=1 0.75"
pack curriculum_ curriculum.pt

# from there, a deeper decoder with rotary positions: known shifts, whatever the distance, and at last video as well
train --data "$out/packed128" --prefix shifts_ --weights "$out/curriculum.pt" --decoder-kind rotary --decoder-depth 4 \
  --epochs 45 --warmup-epochs 2 --ema 0.999 --mask-ratio 0.75 \
  --schedule "0 shifted_patches 0.75; 6 mixed:shifted_patches=1,video_shifted=1; 22 shifted_patches"
pack shifts_ shifts.pt
train --data "$out/packed128" --prefix more_shifts_ --weights "$out/shifts.pt" --decoder-kind rotary \
  --epochs 16 --warmup-epochs 1 --base-lr 0.02 --ema 0.999 --mask-ratio 0.75 --schedule "0 shifted_patches 0.75"
pack more_shifts_ more_shifts.pt
mix=mixed:video=2,video_shifted=1,shifted_patches=1
train --data "$out/packed128" --prefix siammae_motion_ --weights "$out/more_shifts.pt" --decoder-kind rotary \
  --epochs 32 --warmup-epochs 1 --base-lr 0.02 --ema 0.999 --mask-ratio 0.75 \
  --schedule "0 $mix 0.75; 16 $mix 0.9; 22 $mix 0.5; 24 $mix 0.75"
pack siammae_motion_ siammae_motion.pt

# from there, 96 pixels and plain targets, mostly plain video: pictures, of what moved too
mix=mixed:video=4,video_shifted=1,shifted_patches=1
train --data "$out/packed" --prefix siammae_mini_ --weights "$out/siammae_motion.pt" --decoder-kind rotary --image-size 96 \
  --norm-pix-loss no --epochs 24 --warmup-epochs 1 --base-lr 0.016 --ema 0.998 --mask-ratio 0.75 \
  --schedule "0 $mix 0.75; 8 $mix 0.9; 14 $mix 0.5; 17 $mix 0.75"
pack siammae_mini_ siammae_mini.pt

# from the curriculum, 96 pixels and plain targets, mostly plain video: motion, and pictures
train --data "$out/packed" --prefix siammae_micro_ --weights "$out/curriculum.pt" --image-size 96 --norm-pix-loss no \
  --epochs 24 --warmup-epochs 1 --base-lr 0.016 --ema 0.998 --mask-ratio 0.75 \
  --schedule "0 mixed:video=3,video_shifted=1 0.75; 8 mixed:video=3,video_shifted=1 0.9; 14 mixed:video=3,video_shifted=1 0.5; 17 mixed:video=3,video_shifted=1 0.75"
pack siammae_micro_ siammae_micro.pt

# the image MAE: the frames alone, and photographs
train --data "$out/packed" --photos "$photos" --prefix mae_micro_ --model mae_micro_patch8 --image-size 96 --norm-pix-loss no \
  --batch-size 16 --epochs 30 --warmup-epochs 2 --base-lr 0.024 --ema 0.999 --mask-ratio 0.75 --pairing mixed:video=3,crops=1
pack mae_micro_ mae_micro.pth
