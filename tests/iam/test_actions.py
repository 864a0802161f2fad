"""Actions that a policy may speak of: AWS's, all that a request here needs, and none that is no action."""

import pytest

from objstore.errors import BadArgument
from objstore.iam.actions import KNOWN, OPERATIONS, check_action
from objstore.iam.policy import Decision, compile_policy
from objstore.s3.access import OF_VERSIONS, WITH_ACL
from objstore.s3.actions import ACTIONS


def test_every_action_that_a_request_needs_may_be_named() -> None:
    needed = {action for actions in ACTIONS.values() for action in actions}
    needed |= {*OF_VERSIONS.values(), *WITH_ACL.values()}
    assert len(needed) > 60
    assert needed - set(KNOWN.values()) == set()
    for action in KNOWN.values():
        check_action(action)


def test_an_operation_is_told_for_the_action_it_needs() -> None:
    operations = {name.lower(): actions for name, actions in ACTIONS.items()}
    assert {name: (action,) for name, action in OPERATIONS.items()} == {
        name: operations[name] for name in OPERATIONS
    }
    assert set(OPERATIONS) & set(KNOWN) == set()


@pytest.mark.parametrize(
    "action", ["*", "s3:*", "S3:getobject", "s3:Get*", "s3:De?eteObject", "s3:*Acl", "s3:**"]
)
def test_names_in_either_case_and_wildcards_that_match_one_are_taken(action: str) -> None:
    check_action(action)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("s3:putobjct", "'s3:putobjct' is no action of S3: is s3:PutObject meant?"),
        ("s3:Frob", "'s3:Frob' is no action of S3"),
        ("s3:Gett*", "is s3:GetObject meant"),
        ("s3:ListObjects", "is s3:ListBucket meant"),
        ("s3:HeadObject", "is s3:GetObject meant"),
        ("s3:?", "is no action of S3"),
        ("s4:Delete*", "'s4:Delete\\*' is of a service 's4'.* only: is s3:Delete\\* meant"),
        ("s4:putobjct", "is of a service 's4'.* is s3:PutObject meant"),
        ("kms:Decrypt", "is of a service 'kms', and a policy here is about s3 only$"),
        ("s3:" + "z" * 6_000, "is no action of S3$"),
    ],
)
def test_what_no_request_can_need_is_refused_with_the_nearest_action_there_is(
    action: str, words: str
) -> None:
    with pytest.raises(BadArgument, match=words):
        check_action(action)


def test_a_policy_that_was_kept_before_names_were_held_against_the_list_is_read_as_it_was() -> None:
    kept = (
        '{"Statement":[{"Effect":"Allow","Action":["s3:GetObject","s3:Frob","s4:Get*"],"Resource":"*"},'
        '{"Effect":"Deny","Action":"s3:putobjct","Resource":"*"}]}'
    )
    policy = compile_policy(kept)
    assert policy.decide("s3:GetObject", "b/k", lambda _: None) is Decision.ALLOW
    assert policy.decide("s3:PutObject", "b/k", lambda _: None) is Decision.NOTHING
