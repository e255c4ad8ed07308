"""URLs of stores: what each names, and that nothing is passed over or shown."""

import pytest

from storage.address import Address, read


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", Address("standalone", False, None, None, (("h", 6379),))),
        ("redis://:p%40%2F@h:1/3", Address("standalone", False, None, "p@/", (("h", 1),), 3)),
        ("redis://word@h", Address("standalone", False, None, "word", (("h", 6379),))),
        ("rediss://u:p@[::1]:6380/", Address("standalone", True, "u", "p", (("::1", 6380),))),
        ("redis+cluster://a,b:7", Address("cluster", False, None, None, (("a", 6379), ("b", 7)))),
        ("rediss+cluster://u:p@a/0", Address("cluster", True, "u", "p", (("a", 6379),))),
        (
            "redis+sentinel://a,[::2]:5/main",
            Address("sentinel", False, None, None, (("a", 26379), ("::2", 5)), 0, "main"),
        ),
        ("rediss+sentinel://u:p@a:1/my%20one/2", Address("sentinel", True, "u", "p", (("a", 1),), 2, "my one")),
    ],
)
def test_what_a_url_names(url: str, address: Address) -> None:
    assert read(url) == address


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("redis://:TOPSECRET@a:1,b:2/0", "several hosts"),
        ("redis+cluster://:TOPSECRET@a:1/1", "database 0 only"),
        ("redis+cluster://:TOPSECRET@a:1,,b:2", "must name a host"),
        ("redis+cluster://", "must name a host"),
        ("redis+cluster://:TOPSECRET@a:70000", "1 to 65535"),
        ("redis+sentinel://:TOPSECRET@a:1", "Sentinel's service"),
        ("redis+sentinel://:TOPSECRET@a:1//0", "Sentinel's service"),
        ("redis+sentinel://:TOPSECRET@a:1/main/x", "number of a database"),
        ("redis+sentinel://:TOPSECRET@a:1/main?x=1", "options"),
        ("redis+tls://:TOPSECRET@a:1", "must begin with"),
        ("sentinel://:TOPSECRET@a:1/main", "must begin with"),
        ("redis+cluster://:TOP:SECRET@x@a:b:1", "percent-encode special characters"),
    ],
)
def test_what_would_not_do_what_it_says(url: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        read(url)
    assert "SECRET" not in str(caught.value)
