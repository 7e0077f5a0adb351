"""Time a distilled training step against its two networks, and against other ways to distil."""
