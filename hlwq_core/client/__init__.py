"""Talking to a ComfyUI from outside: its server, its queue, workflows and progress."""
