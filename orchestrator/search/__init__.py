"""Decides what is tried next and which trials go on; nothing here touches a process."""
