"""The BitMEX realtime feed as Slurry pipelines you can tap at any stage: live, recorded or simulated."""
