"""Screens of VMs that tell which VM they are, in place of a picture."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

HOST = "127.0.0.1"
VIEWER_SECONDS = 30


def greeting(vm_id):
    """Return what the screen of a VM says first: RFB's greeting, and then what no VNC server says."""
    return b"RFB 003.008\nVM %05d\n" % vm_id


@contextlib.contextmanager
def screens(vm_ids):
    """Run a screen for each VM for the time of a block; yield their ports on 127.0.0.1 by VM."""
    listening = {vm_id: socket.create_server((HOST, 0)) for vm_id in vm_ids}
    loop, ending = asyncio.new_event_loop(), asyncio.Event()

    async def serve():
        servers = [await asyncio.start_server(_screen(vm_id), sock=one) for vm_id, one in listening.items()]
        await ending.wait()
        for server in servers:
            server.close()
        viewers = asyncio.all_tasks() - {asyncio.current_task()}
        for viewer in viewers:
            viewer.cancel()
        await asyncio.gather(*viewers, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    try:
        yield {vm_id: one.getsockname()[1] for vm_id, one in listening.items()}
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


def _screen(vm_id):
    async def show(reader, writer):
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            writer.write(greeting(vm_id))
            while await asyncio.wait_for(reader.read(4096), VIEWER_SECONDS):
                pass
        writer.close()

    return show
