"""What TLS to Redis checks and shows, and whether the files for it will do."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Tls:
    """For a URL that asks for TLS.

    Attributes:
        ca_file: who signed the servers' certificates; None for those that this machine trusts.
        cert_file, key_file: of the client; None for none.
        check_hostname: whether a certificate must name the host that the URL, a Sentinel or the cluster names.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    check_hostname: bool = True

    def problems(self) -> list[str]:
        """What is wrong with the files: sentences for the operator."""
        found = []
        if (self.cert_file is None) != (self.key_file is None):
            found.append("A client certificate needs both files: its certificate and its key.")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for file in (self.ca_file, self.cert_file, self.key_file):
            try:
                if file is not None:
                    file.read_bytes()
            except OSError as error:
                found.append(f"{file} cannot be read: {error.strerror}.")
        if found:
            return found
        try:
            if self.ca_file is not None:
                context.load_verify_locations(self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file, password="")  # never asks a terminal for one
        except ssl.SSLError as error:
            found.append(
                f"The files for TLS do not hold a certificate and its key in PEM without a password: {error.reason}."
            )
        return found

    def options(self) -> dict[str, Any]:
        """As redis-py takes them."""
        return {
            "ssl_ca_certs": self.ca_file and str(self.ca_file),
            "ssl_certfile": self.cert_file and str(self.cert_file),
            "ssl_keyfile": self.key_file and str(self.key_file),
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": self.check_hostname,
        }
