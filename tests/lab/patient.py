"""A virtksm that waits SLOWER times as long for a host that answers it or doctor: no key sets these limits."""

from tests.lab.hang import SLOWER
from virtksm.cli import status_alone
from virtksm.cli.main import run_program
from virtksm.doctor.reading import libvirt

if __name__ == "__main__":
    status_alone.LIMIT_S *= SLOWER
    libvirt.ANSWER_WITHIN_S *= SLOWER
    run_program()
