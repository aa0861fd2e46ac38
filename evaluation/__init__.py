"""Label propagation through video and its metrics: objects (DAVIS), parts (VIP), joints (JHMDB) and anyone's own.

Is handed a function `images [B, 3, H, W] → features [B, h, w, D]`; knows no training and no data loader.
"""
