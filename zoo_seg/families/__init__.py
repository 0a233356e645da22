"""Published methods: a file each."""
