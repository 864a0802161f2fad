"""A whole fragment file put in place by the steps of node/disk.py, as repair does it."""

from collections.abc import Sequence

from objstore.node.disk import Buffer, Disk


async def replace(disk: Disk, volume: int, index: int, content: Sequence[Buffer]) -> None:
    name = await disk.replace_begin(volume, index)
    length = 0
    try:
        for buffer in content:
            await disk.replace_append(name, length, [buffer])
            length += len(buffer)
        await disk.replace_publish(name, length)
    except BaseException:
        await disk.replace_abandon(name)
        raise
