"""From frame to frame: steps, mapping, casts, decoding."""
