"""The names in certificates, written in one line as OpenNebula stores them: "/C=XX/O=onelab/CN=alice".

This is the form of OpenSSL 3's X509_NAME_oneline, which Ruby's `certificate.subject.to_s` returns. It depends on the
bytes of each value, which cryptography shows as text only, and not at all if they are no UTF-8; hence the DER here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vnctoken.auth import CredentialError

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMON_NAME = "2.5.4.3"

# The string types that OpenSSL takes for a value: UTF8, Numeric, Printable, T61, IA5, Universal and BMP.
_STRINGS = frozenset({12, 18, 19, 20, 22, 28, 30})
_OID = 6
_VERSION = 0xA0
_SHORT_LENGTHS = 0x80
_LONG_TAG = 0x1F

# Attribute types by OpenSSL's short names; one that it does not know is written as its number.
_TYPES = {
    # X.520 and RFC 4519
    "2.5.4": (
        "3=CN 4=SN 5=serialNumber 6=C 7=L 8=ST 9=street 10=O 11=OU 12=title 13=description 14=searchGuide"
        " 15=businessCategory 16=postalAddress 17=postalCode 18=postOfficeBox 19=physicalDeliveryOfficeName"
        " 20=telephoneNumber 21=telexNumber 22=teletexTerminalIdentifier 23=facsimileTelephoneNumber 24=x121Address"
        " 25=internationaliSDNNumber 26=registeredAddress 27=destinationIndicator 28=preferredDeliveryMethod"
        " 29=presentationAddress 30=supportedApplicationContext 31=member 32=owner 33=roleOccupant 34=seeAlso"
        " 41=name 42=GN 43=initials 44=generationQualifier 46=dnQualifier 48=protocolInformation 49=distinguishedName"
        " 50=uniqueMember 51=houseIdentifier 54=dmdName 65=pseudonym 72=role 97=organizationIdentifier 98=c3 99=n3"
        " 100=dnsName"
    ),
    # RFC 4524
    "0.9.2342.19200300.100.1": (
        "1=UID 2=textEncodedORAddress 3=mail 4=info 5=favouriteDrink 6=roomNumber 8=userClass 9=host 10=manager"
        " 11=documentIdentifier 12=documentTitle 13=documentVersion 14=documentAuthor 15=documentLocation"
        " 20=homeTelephoneNumber 21=secretary 22=otherMailbox 25=DC 37=associatedDomain 38=associatedName"
        " 39=homePostalAddress 40=personalTitle 41=mobileTelephoneNumber 42=pagerTelephoneNumber"
        " 43=friendlyCountryName 44=uid 45=organizationalStatus 46=janetMailbox 48=buildingName 56=documentPublisher"
    ),
    # PKCS #9
    "1.2.840.113549.1.9": "1=emailAddress 2=unstructuredName 8=unstructuredAddress 20=friendlyName",
    # Microsoft's, and those of extended-validation certificates
    "1.3.6.1.4.1.311": "20.2.3=msUPN 60.2.1.1=jurisdictionL 60.2.1.2=jurisdictionST 60.2.1.3=jurisdictionC",
    # Russian qualified certificates
    "1.2.643": "3.131.1.1=INN 100.1=OGRN 100.3=SNILS 100.5=OGRNIP",
}
_SHORT_NAMES = {
    f"{arc}.{number}": name
    for arc, types in _TYPES.items()
    for number, _, name in (entry.partition("=") for entry in types.split())
}


@dataclass(frozen=True, slots=True)
class DistinguishedName:
    """The relative names that a name is made of, each of pairs of a type, such as "2.5.4.3", and a value."""

    parts: tuple[tuple[tuple[str, bytes], ...], ...]

    @classmethod
    def from_der(cls, content: bytes) -> DistinguishedName:
        """Read what is inside the SEQUENCE. Raises ValueError if it is no name, or holds what is no string."""
        return cls(tuple(tuple(_attributes(part)) for _, part in elements(content)))

    def __str__(self) -> str:
        return "".join(
            f"{'+' if others else '/'}{_SHORT_NAMES.get(oid, oid)}={''.join(map(_WRITTEN.__getitem__, value))}"
            for part in self.parts
            for others, (oid, value) in enumerate(part)
        )

    def stored(self) -> tuple[str, str]:
        r"""Return how OpenNebula may have stored it: with each space as "\20", as it does since 4.0, or left out.

        Raises CredentialError for an empty name, and for one with a backslash, which may be written as another one is.
        """
        if not self.parts:
            raise CredentialError("the name in the certificate is empty")
        if any(b"\\" in value for part in self.parts for _, value in part):
            raise CredentialError("the name in the certificate holds a backslash: it may look like another one")
        text = str(self)
        return text.replace(" ", r"\20"), text.replace(" ", "")

    def common_name_below(self, other: DistinguishedName) -> bytes | None:
        """Return X if this is the other name and one more part, CN=X; else None."""
        if self.parts[:-1] == other.parts and other.parts:
            match self.parts[-1]:
                case ((oid, value),) if oid == COMMON_NAME:
                    return value
        return None


def names(tbs_certificate: bytes) -> tuple[DistinguishedName, DistinguishedName]:
    """Return subject and issuer of a certificate, given the DER of its TBSCertificate (RFC 5280, section 4.1).

    Raises ValueError if they cannot be read.
    """
    ((_, content),) = elements(tbs_certificate)
    fields = [field for tag, field in elements(content) if tag != _VERSION]
    _serial, _algorithm, issuer, _validity, subject, *_ = fields
    return DistinguishedName.from_der(subject), DistinguishedName.from_der(issuer)


def elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tag and the content of each DER element in a row. Raises ValueError if these are none."""
    rest = der
    while rest:
        head, rest = rest[:2], rest[2:]
        tag, length = head[0], head[-1]
        octets = max(0, length - _SHORT_LENGTHS)
        if octets:
            head, rest = head + rest[:octets], rest[octets:]
            length = int.from_bytes(head[2:], "big")
        if len(head) < 2 + octets or tag & _LONG_TAG == _LONG_TAG or length > len(rest):
            raise ValueError("this is no DER that can be read")
        yield tag, rest[:length]
        rest = rest[length:]


def oid_text(content: bytes) -> str:
    """Return an object identifier as numbers with dots. Raises ValueError if it ends amid a number."""
    numbers = [0]
    for byte in content:
        numbers[-1] = numbers[-1] << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(0)
    if not content or content[-1] & 0x80:
        raise ValueError("this is no object identifier")
    first, *others = numbers[:-1]
    root = min(first // 40, 2)
    return ".".join(map(str, (root, first - 40 * root, *others)))


def _attributes(part: bytes) -> Iterator[tuple[str, bytes]]:
    for _, attribute in elements(part):
        (oid_tag, oid), (tag, value) = elements(attribute)
        if oid_tag != _OID or tag not in _STRINGS:
            raise ValueError("a name holds what is no string")
        yield oid_text(oid), value


def _written(byte: int) -> str:
    character = chr(byte)
    if not 0x20 <= byte <= 0x7E:  # noqa: PLR2004 (what ASCII can print)
        return f"\\x{byte:02X}"
    return "\\" + character if character in "/+" else character


_WRITTEN = [_written(byte) for byte in range(256)]
