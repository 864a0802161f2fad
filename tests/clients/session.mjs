// What test_javascript.py runs: endpoint, bucket, directory of samples. Prints what it did and verified.
import assert from "node:assert/strict";
import { createReadStream, readFileSync, statSync } from "node:fs";
import {
  CopyObjectCommand, DeleteObjectCommand, DeleteObjectsCommand, GetObjectCommand, HeadObjectCommand,
  PutObjectCommand, S3Client, paginateListObjectsV2, ListObjectsV2Command,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";

const [endpoint, Bucket, directory] = process.argv.slice(2);
const odd = "dir with space/ü+%41&=~'(1)!.txt";
const small = readFileSync(`${directory}/small`);
const large = readFileSync(`${directory}/large`);
const client = new S3Client({ endpoint, region: "us-east-1", forcePathStyle: true, maxAttempts: 1 });
const done = (what) => console.log(JSON.stringify(what));
const read = async (Key, more = {}) =>
  Buffer.from(await (await client.send(new GetObjectCommand({ Bucket, Key, ...more }))).Body.transformToByteArray());

await client.send(new PutObjectCommand({ Bucket, Key: odd, Body: small, Metadata: { colour: "blue" } }));
done("put");
assert.ok((await read(odd)).equals(small));
const head = await client.send(new HeadObjectCommand({ Bucket, Key: odd }));
assert.equal(head.ContentLength, small.length);
assert.equal(head.Metadata.colour, "blue");
done("get");
assert.ok((await read(odd, { Range: "bytes=100-59999" })).equals(small.subarray(100, 60000)));
assert.ok((await read(odd, { Range: "bytes=-9" })).equals(small.subarray(-9)));
done("range");

await client.send(new PutObjectCommand({
  Bucket, Key: "stream", Body: createReadStream(`${directory}/small`), ContentLength: statSync(`${directory}/small`).size,
}));
assert.ok((await read("stream")).equals(small));
done("stream");

const partSize = 5 * 1024 * 1024;
await new Upload({
  client, partSize, queueSize: 4, params: { Bucket, Key: "large", Body: createReadStream(`${directory}/large`) },
}).done();
assert.match((await client.send(new HeadObjectCommand({ Bucket, Key: "large" }))).ETag, /-4"$/);
assert.ok((await read("large")).equals(large));
assert.ok((await read("large", { Range: `bytes=${partSize - 5}-${partSize + 4}` })).equals(
  large.subarray(partSize - 5, partSize + 5)));
done("multipart");

await client.send(new CopyObjectCommand({ Bucket, Key: "kept", CopySource: `${Bucket}/${encodeURIComponent(odd)}` }));
assert.ok((await read("kept")).equals(small));
done("copy");

const keys = [];
for await (const page of paginateListObjectsV2({ client, pageSize: 2 }, { Bucket })) {
  keys.push(...(page.Contents ?? []).map((entry) => entry.Key));
}
assert.deepEqual(keys, [odd, "kept", "large", "stream"]);
const folded = await client.send(new ListObjectsV2Command({ Bucket, Delimiter: "/" }));
assert.deepEqual(folded.CommonPrefixes.map((entry) => entry.Prefix), ["dir with space/"]);
done("list");

await assert.rejects(read("absent"), { name: "NoSuchKey" });
await assert.rejects(
  client.send(new PutObjectCommand({ Bucket, Key: "kept", Body: "again", IfNoneMatch: "*" })),
  { name: "PreconditionFailed" },
);
done("errors");

await client.send(new DeleteObjectCommand({ Bucket, Key: "stream" }));
const gone = await client.send(new DeleteObjectsCommand({
  Bucket, Delete: { Objects: [{ Key: odd }, { Key: "large" }] },
}));
assert.deepEqual(gone.Deleted.map((entry) => entry.Key).sort(), [odd, "large"].sort());
done("delete");
