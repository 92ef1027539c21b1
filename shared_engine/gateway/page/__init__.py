"""The page at ``/``: files that a browser gets as they are. What it shows it asks the gateway's other routes for."""
