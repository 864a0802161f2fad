"""Real processes under LD_PRELOAD: every power cut, and failures at call N."""
