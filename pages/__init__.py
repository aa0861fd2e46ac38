"""What can be looked at in a browser: the frame, style and script of each page; and what a result was made with."""
