"""What comes of work that waits for nothing, as tests without a reactor want to know it."""

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


def result_of(work):
    """Return what a coroutine or a Deferred has come to, or raise it."""
    results = []
    deferred = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
    deferred.addBoth(results.append)
    assert results, "it waits"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]
