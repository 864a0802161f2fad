"""Settings to paste: what a new key looks like in the tools that people use."""

from collections.abc import Callable
from typing import Final


def boto3(endpoint: str, region: str, access_key: str, secret_key: str) -> str:
    return (
        "import boto3\n"
        f's3 = boto3.client("s3", endpoint_url="{endpoint}", region_name="{region}",\n'
        f'    aws_access_key_id="{access_key}",\n'
        f'    aws_secret_access_key="{secret_key}")\n'
        's3.create_bucket(Bucket="hello")\n'
        's3.put_object(Bucket="hello", Key="world.txt", Body=b"Hello, world!")'
    )


def aws(endpoint: str, region: str, access_key: str, secret_key: str) -> str:
    return (
        f"export AWS_ACCESS_KEY_ID='{access_key}'\n"
        f"export AWS_SECRET_ACCESS_KEY='{secret_key}'\n"
        f"export AWS_DEFAULT_REGION='{region}' AWS_ENDPOINT_URL='{endpoint}'\n"
        "aws s3 mb s3://hello && aws s3 ls"
    )


def rclone(endpoint: str, region: str, access_key: str, secret_key: str) -> str:
    return (
        "# ~/.config/rclone/rclone.conf, then: rclone lsd objstore:\n"
        "[objstore]\n"
        "type = s3\n"
        "provider = Other\n"
        f"endpoint = {endpoint}\n"
        f"region = {region}\n"
        f"access_key_id = {access_key}\n"
        f"secret_access_key = {secret_key}"
    )


SNIPPETS: Final[dict[str, Callable[[str, str, str, str], str]]] = {
    "boto3": boto3,
    "aws": aws,
    "rclone": rclone,
}
