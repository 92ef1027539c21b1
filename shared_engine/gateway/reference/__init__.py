"""What the gateway can be asked, described: ``/openapi.json``, which ``/docs`` shows."""
