"""Text under our own names of parameters: one answer, or those of many prompts or conversations in one request."""
