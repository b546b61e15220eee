"""Who may call what, and what is kept of it: everything between TLS and a service."""
