"""The targets, by what they read."""

from fuzz.targets import connections, documents, doors, files, outside, stores

TARGETS = (*documents.TARGETS, *files.TARGETS, *stores.TARGETS, *doors.TARGETS, *connections.TARGETS, *outside.TARGETS)
