"""Parse XML that somebody else wrote: no DTD, no entities, no network, bounded depth."""

from lxml import etree

# libxml2 keeps the bounds as long as huge_tree is off: 256 levels, 10 MB of text in a node, and entities that
# may not expand to more than a few times the document (a DTD is refused, but only after it was read).
_PARSER = etree.XMLParser(
    resolve_entities=False,
    no_network=True,
    load_dtd=False,
    huge_tree=False,
    remove_comments=True,
    remove_pis=True,
)


class DocumentError(ValueError):
    """Raised if bytes are not an XML document that we accept. Its text may quote the document."""


def parse(document: bytes) -> etree._Element:
    """Return the root element of a document.

    Raises DocumentError if it is not well-formed, is nested deeper than 256 levels, is in an unknown or wrong
    encoding, or has a DTD.
    """
    try:
        root = etree.fromstring(document, _PARSER)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise DocumentError(str(error)) from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise DocumentError("a document type definition (DTD) is not accepted")
    return root
