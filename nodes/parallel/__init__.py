"""One video computed by several cards: ComfyUI samples as ever, and each card runs the model for a part of the video's tokens."""
