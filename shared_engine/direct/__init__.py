"""vLLM under the app itself: its API server's application on a thread of this process, its EngineCore a child that
ends with it. No socket, no server process.
"""
