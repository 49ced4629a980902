# What virtksm uses of libvirt-python's libvirt_qemu, which ships no type information.
import libvirt

def qemuMonitorCommand(domain: libvirt.virDomain, cmd: str, flags: int) -> str: ...
