"""Who is who: keys, certificates with roles, and the authority that issues and revokes them."""
