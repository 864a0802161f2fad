"""The actions of S3, as AWS names them: what a policy may speak of.

A policy with an action that no request can ever ask for is a mistake, and in a Deny it is a hole. So names
are held against AWS's list when a policy is given. Names that nothing here asks for (access points, jobs) are
taken: a policy that was written for AWS stays as it is.

Pure: it may not know what a policy says of an action. Policies that are kept already are read without it.

Source: AWS Service Authorization Reference, "Actions, resources, and condition keys for Amazon S3".
"""

from difflib import get_close_matches
from typing import Final

from objstore.errors import BadArgument
from objstore.iam.patterns import Text

SERVICE: Final = "s3"
_NAMES: Final = """
    AbortMultipartUpload AllowVendedLogDeliveryForResource AssociateAccessGrantsIdentityCenter
    BypassGovernanceRetention CreateAccessGrant CreateAccessGrantsInstance CreateAccessGrantsLocation
    CreateAccessPoint CreateAccessPointForObjectLambda CreateBucket CreateBucketMetadataTableConfiguration
    CreateJob CreateMultiRegionAccessPoint CreateSession CreateStorageLensGroup DeleteAccessGrant
    DeleteAccessGrantsInstance DeleteAccessGrantsInstanceResourcePolicy DeleteAccessGrantsLocation
    DeleteAccessPoint DeleteAccessPointForObjectLambda DeleteAccessPointPolicy
    DeleteAccessPointPolicyForObjectLambda DeleteBucket DeleteBucketMetadataTableConfiguration
    DeleteBucketPolicy DeleteBucketWebsite DeleteJobTagging DeleteMultiRegionAccessPoint DeleteObject
    DeleteObjectAnnotation DeleteObjectTagging DeleteObjectVersion DeleteObjectVersionAnnotation
    DeleteObjectVersionTagging DeleteStorageLensConfiguration DeleteStorageLensConfigurationTagging
    DeleteStorageLensGroup DescribeJob DescribeMultiRegionAccessPointOperation
    DissociateAccessGrantsIdentityCenter GetAccelerateConfiguration GetAccessGrant GetAccessGrantsInstance
    GetAccessGrantsInstanceForPrefix GetAccessGrantsInstanceResourcePolicy GetAccessGrantsLocation
    GetAccessPoint GetAccessPointConfigurationForObjectLambda GetAccessPointForObjectLambda
    GetAccessPointPolicy GetAccessPointPolicyForObjectLambda GetAccessPointPolicyStatus
    GetAccessPointPolicyStatusForObjectLambda GetAccountPublicAccessBlock GetAnalyticsConfiguration
    GetBucketAbac GetBucketAcl GetBucketCORS GetBucketLocation GetBucketLogging
    GetBucketMetadataTableConfiguration GetBucketNotification GetBucketObjectLockConfiguration
    GetBucketOwnershipControls GetBucketPolicy GetBucketPolicyStatus GetBucketPublicAccessBlock
    GetBucketRequestPayment GetBucketTagging GetBucketVersioning GetBucketWebsite GetDataAccess
    GetEncryptionConfiguration GetIntelligentTieringConfiguration GetInventoryConfiguration GetJobTagging
    GetLifecycleConfiguration GetMetricsConfiguration GetMultiRegionAccessPoint
    GetMultiRegionAccessPointPolicy GetMultiRegionAccessPointPolicyStatus GetMultiRegionAccessPointRoutes
    GetObject GetObjectAcl GetObjectAnnotation GetObjectAttributes GetObjectLegalHold GetObjectRetention
    GetObjectTagging GetObjectTorrent GetObjectVersion GetObjectVersionAcl GetObjectVersionAnnotation
    GetObjectVersionAnnotationForReplication GetObjectVersionAttributes GetObjectVersionForReplication
    GetObjectVersionTagging GetObjectVersionTorrent GetReplicationConfiguration GetStorageLensConfiguration
    GetStorageLensConfigurationTagging GetStorageLensDashboard GetStorageLensGroup InitiateReplication
    ListAccessGrants ListAccessGrantsInstances ListAccessGrantsLocations ListAccessPoints
    ListAccessPointsForObjectLambda ListAllMyBuckets ListBucket ListBucketMultipartUploads ListBucketVersions
    ListCallerAccessGrants ListJobs ListMultiRegionAccessPoints ListMultipartUploadParts ListObjectAnnotations
    ListObjectVersionAnnotations ListStorageLensConfigurations ListStorageLensGroups ListTagsForResource
    ObjectOwnerOverrideToBucketOwner PauseReplication PutAccelerateConfiguration
    PutAccessGrantsInstanceResourcePolicy PutAccessPointConfigurationForObjectLambda PutAccessPointPolicy
    PutAccessPointPolicyForObjectLambda PutAccessPointPublicAccessBlock PutAccountPublicAccessBlock
    PutAnalyticsConfiguration PutBucketAbac PutBucketAcl PutBucketCORS PutBucketLogging PutBucketNotification
    PutBucketObjectLockConfiguration PutBucketOwnershipControls PutBucketPolicy PutBucketPublicAccessBlock
    PutBucketRequestPayment PutBucketTagging PutBucketVersioning PutBucketWebsite PutEncryptionConfiguration
    PutIntelligentTieringConfiguration PutInventoryConfiguration PutJobTagging PutLifecycleConfiguration
    PutMetricsConfiguration PutMultiRegionAccessPointPolicy PutObject PutObjectAcl PutObjectAnnotation
    PutObjectLegalHold PutObjectRetention PutObjectTagging PutObjectVersionAcl PutObjectVersionAnnotation
    PutObjectVersionTagging PutReplicationConfiguration PutStorageLensConfiguration
    PutStorageLensConfigurationTagging ReplicateDelete ReplicateObject ReplicateObjectAnnotation ReplicateTags
    RestoreObject SubmitMultiRegionAccessPointRoutes TagResource UntagResource UpdateAccessGrantsLocation
    UpdateBucketMetadataAnnotationTableConfiguration UpdateBucketMetadataInventoryTableConfiguration
    UpdateBucketMetadataJournalTableConfiguration UpdateJobPriority UpdateJobStatus UpdateObjectEncryption
    UpdateStorageLensGroup
"""
# CreateSession is of s3express there; here it is asked for under this name (s3/actions.py).
KNOWN: Final = {name.lower(): f"{SERVICE}:{name}" for name in _NAMES.split()}
# Operations that are often written for the actions they need, by what is meant.
OPERATIONS: Final = {
    "completemultipartupload": "s3:PutObject",
    "copyobject": "s3:PutObject",
    "createmultipartupload": "s3:PutObject",
    "deleteobjects": "s3:DeleteObject",
    "headbucket": "s3:ListBucket",
    "headobject": "s3:GetObject",
    "listbuckets": "s3:ListAllMyBuckets",
    "listmultipartuploads": "s3:ListBucketMultipartUploads",
    "listobjects": "s3:ListBucket",
    "listobjectsv2": "s3:ListBucket",
    "listobjectversions": "s3:ListBucketVersions",
    "listparts": "s3:ListMultipartUploadParts",
    "uploadpart": "s3:PutObject",
    "uploadpartcopy": "s3:PutObject",
}
_NAME_SIZE_MAX: Final = max(map(len, KNOWN))  # Characters; for what is longer nothing nearest is looked for.


def check_action(action: str) -> None:
    """
    Args:
        action: `*`, or a service and a name, either case; `*` and `?` in the name.

    Raises: BadArgument: no action of S3 is meant by it; the error names the nearest one there is.
    """
    service, _, name = action.partition(":")
    if action == "*" or (service.lower() == SERVICE and _is_known(name)):
        return
    what = f"{action!r} is no action of S3" if service.lower() == SERVICE else _of_another(action, service)
    nearest = f"{SERVICE}:{name}" if _is_known(name) else _nearest(name)
    raise BadArgument(f"{what}: is {nearest} meant?" if nearest else what, name="action", value=action)


def _of_another(action: str, service: str) -> str:
    return f"{action!r} is of a service {service!r}, and a policy here is about {SERVICE} only"


def _is_known(name: str) -> bool:
    if "*" not in name and "?" not in name:
        return name.lower() in KNOWN
    text = Text(name, wildcards=True, variables=False, fold=True)
    return any(text.matches(one, lambda _: None) for one in KNOWN)


def _nearest(name: str) -> str:
    """The action that it needs, or that is written most like it; empty: none is."""
    plain = name.lower().replace("*", "").replace("?", "")
    if plain in OPERATIONS:
        return OPERATIONS[plain]
    found = get_close_matches(plain, KNOWN, n=1) if len(plain) <= _NAME_SIZE_MAX else []
    return KNOWN[found[0]] if found else ""
