"""One module a schema, in order. What has been released is never edited."""
