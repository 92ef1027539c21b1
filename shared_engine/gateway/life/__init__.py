"""Models' life by HTTP: state, loading and unloading, requests in flight, events, logs, the gateway's end."""
