"""Where adapter versions are kept."""
