package manifest

var catalogue = []Explanation{
	{
		Code: CodeSyntax, Severity: SeverityError,
		Title: "the text is not YAML or JSON",
		Text:  "The file could not be parsed, so nothing else in the document was looked at. The line is where the parser gave up; the mistake is often in the line above: a missing colon, a tab used for indentation, an unclosed quote.",
		Wrong: `spec:
	vertices: []`,
		Right: `spec:
  vertices: []`,
	},
	{
		Code: CodeTooLarge, Severity: SeverityError,
		Title: "the file is too large",
		Text:  "A document may have 4 MiB and a file 32 MiB. Real manifests have a few kilobytes; data belongs into a ConfigMap, a volume or an image.",
		Wrong: `(a document of 5 MiB)`,
		Right: `(several smaller documents)`,
	},
	{
		Code: CodeTooDeep, Severity: SeverityError,
		Title: "fields are nested too deeply",
		Text:  "Fields may lie 100 levels deep in one another. No field of a manifest needs a quarter of that.",
		Wrong: `[[[[ ... ]]]]`,
		Right: `[[1], [2]]`,
	},
	{
		Code: CodeAliases, Severity: SeverityError,
		Title: "aliases make the document too large",
		Text:  "With every YAML alias written out the document would be larger than 16 MiB, or it would contain itself. Kubernetes refuses such documents too.",
		Wrong: `a: &a [x, x]
b: &b [*a, *a]
c: [*b, *b]   # and so on`,
		Right: `a: [x, x]`,
	},
	{
		Code: CodeDuplicateField, Severity: SeverityError,
		Title: "a field is there twice",
		Text:  "YAML libraries disagree about which of two equal fields counts, so that the API server refuses both. Keep one.",
		Wrong: `spec:
  limits: {readBatchSize: 10}
  limits: {readBatchSize: 20}`,
		Right: `spec:
  limits: {readBatchSize: 20}`,
	},
	{
		Code: CodeNotAnObject, Severity: SeverityError,
		Title: "the document is not an object",
		Text:  "A manifest is an object with apiVersion, kind, metadata and spec. A list of manifests is an object of kind List with items.",
		Wrong: `- kind: Pipeline`,
		Right: `kind: Pipeline`,
	},
	{
		Code: CodeAPIVersion, Severity: SeverityError,
		Title: "the apiVersion is wrong",
		Text:  "Every kind of ours is in numaflow.numaproj.io/v1alpha1. Where the apiVersion is clearly another project's, the document is kept and not looked at instead.",
		Wrong: `apiVersion: numaflow.numaproj.io/v1
kind: Pipeline`,
		Right: `apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline`,
	},
	{
		Code: CodeUnknownKind, Severity: SeverityError,
		Title: "the kind does not exist",
		Text:  "The kinds are Pipeline, MonoVertex, InterStepBufferService, ServingPipeline and Vertex, written exactly so.",
		Wrong: `kind: Pipline`,
		Right: `kind: Pipeline`,
	},
	{
		Code: CodeOtherKind, Severity: SeverityNote,
		Title: "a document of another kind",
		Text:  "A file may hold ConfigMaps, Secrets and anything else that belongs to a pipeline. Such documents are kept as they are and not checked.",
		Wrong: `kind: ConfigMap`,
		Right: `kind: ConfigMap`,
	},
	{
		Code: CodeUnknownField, Severity: SeverityError,
		Title: "the field does not exist",
		Text:  "The API server refuses fields that it does not know, because a mistyped setting would otherwise be ignored silently. Upper and lower case count.",
		Wrong: `limits:
  readBatchSise: 10`,
		Right: `limits:
  readBatchSize: 10`,
	},
	{
		Code: CodeWrongType, Severity: SeverityError,
		Title: "the value has the wrong type",
		Text:  "The field takes another type of value. Numbers are written without quotes, durations with a unit and in quotes where they could be something else (\"10s\"), quantities as 500m or 20Gi.",
		Wrong: `limits:
  readTimeout: 10`,
		Right: `limits:
  readTimeout: 10s`,
	},
	{
		Code: CodeRequired, Severity: SeverityError,
		Title: "a required field is missing",
		Text:  "Nothing can be assumed for this field. The position is that of the object in which it is missing.",
		Wrong: `source:
  file: {}`,
		Right: `source:
  file: {path: orders.csv}`,
	},
	{
		Code: CodeEnum, Severity: SeverityError,
		Title: "the value is not one of those that exist",
		Text:  "The field takes one of a few words. Upper and lower case count.",
		Wrong: `lifecycle:
  desiredPhase: paused`,
		Right: `lifecycle:
  desiredPhase: Paused`,
	},
	{
		Code: CodeNumber, Severity: SeverityError,
		Title: "the number is out of range",
		Text:  "The number means nothing outside of the range that is shown.",
		Wrong: `lifecycle:
  pauseGracePeriodSeconds: -1`,
		Right: `lifecycle:
  pauseGracePeriodSeconds: 60`,
	},
	{
		Code: CodeDuration, Severity: SeverityError,
		Title: "the duration is out of range",
		Text:  "Durations are not negative, and those that are waited for are above 0.",
		Wrong: `limits:
  readTimeout: -1s`,
		Right: `limits:
  readTimeout: 1s`,
	},
	{
		Code: CodeExclusive, Severity: SeverityError,
		Title: "fields exclude each other",
		Text:  "Only one of these fields may be set; which of them should count cannot be guessed.",
		Wrong: `auth:
  token: {name: s, key: t}
  nkey: {name: s, key: n}`,
		Right: `auth:
  token: {name: s, key: t}`,
	},
	{
		Code: CodeNoEffect, Severity: SeverityWarning,
		Title: "the setting has no effect",
		Text:  "The setting is accepted and changes nothing where it stands, which is rarely what its author thinks.",
		Wrong: `sink:
  log: {}
  retryStrategy: {onFailure: drop}`,
		Right: `sink:
  log: {}`,
	},
	{
		Code: CodeDeprecated, Severity: SeverityWarning,
		Title: "an old spelling",
		Text:  "The field still works, under a newer name as well. render writes the new one.",
		Wrong: `lifecycle:
  deleteGracePeriodSeconds: 60`,
		Right: `lifecycle:
  deletionGracePeriodSeconds: 60`,
	},
	{
		Code: CodeAddress, Severity: SeverityError,
		Title: "the address cannot be used",
		Text:  "The value is not an address of the form that this kind of server has.",
		Wrong: `brokers: [kafka]`,
		Right: `brokers: ["kafka:9092"]`,
	},
	{
		Code: CodeTooManyProblems, Severity: SeverityError,
		Title: "too many problems in one document",
		Text:  "After 499 problems of one document the rest is not shown. They usually have one cause.",
		Wrong: `(a file of another format)`,
		Right: `(a manifest)`,
	},
	{
		Code: CodeNoManifest, Severity: SeverityWarning,
		Title: "the file has no manifest",
		Text:  "The file is empty, or holds comments only, or only documents of kinds that are not ours.",
		Wrong: `# nothing`,
		Right: `apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline`,
	},
	{
		Code: CodeUnreadable, Severity: SeverityError,
		Title: "the file cannot be read",
		Text:  "The operating system would not give the file. The message is its own.",
		Wrong: `levada validate no-such-file.yaml`,
		Right: `levada validate pipeline.yaml`,
	},
	{
		Code: CodeName, Severity: SeverityError,
		Title: "the name is not allowed",
		Text:  "Names become names of services and host names, so they are RFC 1035 labels: at most 63 lower-case letters, digits and hyphens, starting with a letter and not ending with a hyphen.",
		Wrong: `- name: Read_Orders`,
		Right: `- name: read-orders`,
	},
	{
		Code: CodeNamesTooLong, Severity: SeverityError,
		Title: "names are too long together",
		Text:  "Kubernetes allows 63 characters for the name of a service, and a vertex has one that is made of the names of the pipeline and the vertex.",
		Wrong: `(pipeline of 40 characters with a vertex of 30)`,
		Right: `(names of 20 characters)`,
	},
	{
		Code: CodeNamesake, Severity: SeverityError,
		Title: "two objects with the same name",
		Text:  "Objects of one kind in one namespace need different names: the second would replace the first.",
		Wrong: `metadata: {name: orders}
---
metadata: {name: orders}`,
		Right: `metadata: {name: orders}
---
metadata: {name: orders-archive}`,
	},
	{
		Code: CodeUnknownAnnotation, Severity: SeverityError,
		Title: "there is no such annotation",
		Text:  "Annotations that start with levada.io/ are ours, and one that does not exist is an error, so that a typing error does not become a setting without effect. A MonoVertex has no buffers, and so neither block-bytes nor shards.",
		Wrong: `metadata:
  annotations:
    levada.io/funktion.cat: ./cat`,
		Right: `metadata:
  annotations:
    levada.io/function.cat: ./cat`,
	},
	{
		Code: CodeAnnotationVertex, Severity: SeverityError,
		Title: "the annotation names no vertex of this object",
		Text:  "The annotation names a vertex behind a dot. In a MonoVertex that is its own name.",
		Wrong: `levada.io/function.kat: ./cat`,
		Right: `levada.io/function.cat: ./cat`,
	},
	{
		Code: CodeAnnotationRole, Severity: SeverityError,
		Title: "the vertex has no such container",
		Text:  "The role behind the vertex is one of udf, transformer, udsource, udsink, fb-udsink, ons-udsink, and the vertex must have that container. Without a role it is the udf, udsource or udsink.",
		Wrong: `levada.io/function.in.udf: ./read   # in is a source`,
		Right: `levada.io/function.in.udsource: ./read`,
	},
	{
		Code: CodeAnnotationValue, Severity: SeverityError,
		Title: "the value of the annotation is wrong",
		Text:  "A function is a command line, a processing timeout a duration above 0, block-bytes a size from 1Ki to 64Mi, shards a number from 1 to 64 with which a vertex has at most 64.",
		Wrong: `levada.io/processing-timeout: fast`,
		Right: `levada.io/processing-timeout: 30s`,
	},
	{
		Code: CodeAnnotationLength, Severity: SeverityError,
		Title: "the annotation is too long",
		Text:  "Kubernetes takes at most 63 characters behind the slash of an annotation, and refuses the object otherwise.",
		Wrong: `levada.io/function.(a vertex of 60 characters)`,
		Right: `levada.io/function.cat`,
	},
	{
		Code: CodeNoSourceOrSink, Severity: SeverityError,
		Title: "no source or no sink",
		Text:  "A pipeline takes messages in and out: it has at least one source and one sink.",
		Wrong: `vertices:
- name: in
  source: {generator: {}}`,
		Right: `vertices:
- name: in
  source: {generator: {}}
- name: out
  sink: {log: {}}`,
	},
	{
		Code: CodeVertexTwice, Severity: SeverityError,
		Title: "two vertices with the same name",
		Text:  "Edges refer to vertices by name, and buffers are named after them.",
		Wrong: `vertices:
- name: a
- name: a`,
		Right: `vertices:
- name: a
- name: b`,
	},
	{
		Code: CodeEdgeToNowhere, Severity: SeverityError,
		Title: "the edge names a vertex that does not exist",
		Text:  "from and to are names of vertices of the same pipeline.",
		Wrong: `edges:
- {from: in, to: outt}`,
		Right: `edges:
- {from: in, to: out}`,
	},
	{
		Code: CodeEdgeTwice, Severity: SeverityError,
		Title: "two edges between the same vertices",
		Text:  "Messages would be sent twice. Several conditions for one edge go into its list of tags.",
		Wrong: `edges:
- {from: a, to: b}
- {from: a, to: b}`,
		Right: `edges:
- {from: a, to: b}`,
	},
	{
		Code: CodeVertexAlone, Severity: SeverityError,
		Title: "an edge is missing",
		Text:  "A source has an edge out, a sink an edge in, and a udf has both. Messages of a vertex without a way out would pile up.",
		Wrong: `vertices: [in, cat, out]
edges:
- {from: in, to: out}`,
		Right: `edges:
- {from: in, to: cat}
- {from: cat, to: out}`,
	},
	{
		Code: CodeEdgeDirection, Severity: SeverityError,
		Title: "the edge goes the wrong way",
		Text:  "Nothing can be sent to a source, and nothing comes out of a sink.",
		Wrong: `edges:
- {from: out, to: in}`,
		Right: `edges:
- {from: in, to: out}`,
	},
	{
		Code: CodeNotConnected, Severity: SeverityError,
		Title: "the pipeline falls into parts",
		Text:  "Every vertex can be reached from every other along edges in either direction. Parts that have nothing to do with each other are pipelines of their own.",
		Wrong: `edges:
- {from: a, to: b}
- {from: c, to: d}`,
		Right: `edges:
- {from: a, to: b}
- {from: c, to: b}`,
	},
	{
		Code: CodeReduceInCycle, Severity: SeverityError,
		Title: "a reduce in or behind a cycle",
		Text:  "A message that goes round comes back later than the watermark promised, so that windows behind a cycle would close without it. Put the reduce before the cycle.",
		Wrong: `edges:
- {from: retry, to: retry}
- {from: retry, to: sum}`,
		Right: `edges:
- {from: sum, to: retry}
- {from: retry, to: retry}`,
	},
	{
		Code: CodeNoEdges, Severity: SeverityError,
		Title: "the pipeline has no edges",
		Text:  "Edges say where messages go. Even the smallest pipeline has one, from its source to its sink.",
		Wrong: `edges: []`,
		Right: `edges:
- {from: in, to: out}`,
	},
	{
		Code: CodeNoTags, Severity: SeverityError,
		Title: "a condition without tags",
		Text:  "A condition compares the tags of a message with a list of values, which cannot be empty. An edge without conditions takes every message.",
		Wrong: `conditions:
  tags: {values: []}`,
		Right: `conditions:
  tags: {values: [even]}`,
	},
	{
		Code: CodeOperator, Severity: SeverityError,
		Title: "the operator does not exist",
		Text:  "and: the message has every value; or: at least one (the default); not: none of them.",
		Wrong: `tags: {operator: any, values: [even]}`,
		Right: `tags: {operator: or, values: [even]}`,
	},
	{
		Code: CodeOnFull, Severity: SeverityError,
		Title: "onFull says something that does not exist",
		Text:  "retryUntilSuccess waits and so pushes back to the source (the default). discardLatest drops messages while the buffer is full, and counts them.",
		Wrong: `onFull: drop`,
		Right: `onFull: discardLatest`,
	},
	{
		Code: CodeVertexRole, Severity: SeverityError,
		Title: "a vertex is not exactly one of source, sink and udf",
		Text:  "What a vertex is, is said by the field that it has.",
		Wrong: `- name: cat
  source: {generator: {}}
  udf: {builtin: {name: cat}}`,
		Right: `- name: cat
  udf: {builtin: {name: cat}}`,
	},
	{
		Code: CodeScaleBounds, Severity: SeverityError,
		Title: "min and max do not fit",
		Text:  "min is 0 or more, and max is not below it. Without them they are 0 and 50.",
		Wrong: `scale: {min: 5, max: 3}`,
		Right: `scale: {min: 3, max: 5}`,
	},
	{
		Code: CodeScaleNumber, Severity: SeverityError,
		Title: "a number of the autoscaling is out of range",
		Text:  "Percentages go from 1 to 100, lookbackSeconds from 1 to 600, and the rest is at least 1.",
		Wrong: `scale: {lookbackSeconds: 900}`,
		Right: `scale: {lookbackSeconds: 600}`,
	},
	{
		Code: CodeCronPlace, Severity: SeverityError,
		Title: "only sources are scaled by the clock",
		Text:  "scale.cron works on sources and in a MonoVertex. Other vertices follow the load that comes from there.",
		Wrong: `- name: out
  scale: {cron: {...}}
  sink: {log: {}}`,
		Right: `- name: in
  scale: {cron: {...}}
  source: {generator: {}}`,
	},
	{
		Code: CodePartitions, Severity: SeverityError,
		Title: "the vertex cannot have that many partitions",
		Text:  "partitions is the number of buffers that a vertex reads from. A source reads from none, and a reduce without keys is one single group.",
		Wrong: `- name: in
  partitions: 3
  source: {generator: {}}`,
		Right: `- name: cat
  partitions: 3
  udf: {builtin: {name: cat}}`,
	},
	{
		Code: CodeUpdateStrategy, Severity: SeverityError,
		Title: "the update strategy is wrong",
		Text:  "The only type is RollingUpdate; maxUnavailable is a number above 0 or a percentage from 1% to 100%.",
		Wrong: `rollingUpdate: {maxUnavailable: 0}`,
		Right: `rollingUpdate: {maxUnavailable: 25%}`,
	},
	{
		Code: CodeContainerName, Severity: SeverityError,
		Title: "the name of a container is taken",
		Text:  "The platform has containers of its own in the pod of a vertex, and names are unique in a pod.",
		Wrong: `sidecars:
- {name: numa, image: proxy}`,
		Right: `sidecars:
- {name: proxy, image: proxy}`,
	},
	{
		Code: CodeSourceSidecars, Severity: SeverityError,
		Title: "a source with sidecars",
		Text:  "A source cannot have sidecars. An initContainer with restartPolicy Always does the same.",
		Wrong: `- name: in
  sidecars: [...]
  source: {generator: {}}`,
		Right: `- name: in
  initContainers: [...]
  source: {generator: {}}`,
	},
	{
		Code: CodeOrderedScale, Severity: SeverityError,
		Title: "bounds on an ordered vertex",
		Text:  "To keep the order, each partition is read by exactly one pod, so that the number of replicas is the number of partitions.",
		Wrong: `ordered: {enabled: true}
scale: {max: 5}`,
		Right: `ordered: {enabled: true}
partitions: 5`,
	},
	{
		Code: CodeSourceType, Severity: SeverityError,
		Title: "not exactly one type of source",
		Text:  "A source is one of generator, http, kafka, nats, jetstream, pulsar, sqs, serving, udsource, file, stdin, stream. transformer may be there beside it.",
		Wrong: `source:
  generator: {}
  http: {}`,
		Right: `source:
  http: {}`,
	},
	{
		Code: CodeGenerator, Severity: SeverityError,
		Title: "a number of the generator is out of range",
		Text:  "rpu is 1 to 10 million messages per duration, msgSize at most 64 MiB, keyCount not negative.",
		Wrong: `generator: {rpu: 0}`,
		Right: `generator: {rpu: 5}`,
	},
	{
		Code: CodeBase64, Severity: SeverityError,
		Title: "valueBlob is not base64",
		Text:  "valueBlob is the payload in standard base64, with padding: printf hello | base64",
		Wrong: `valueBlob: hello!`,
		Right: `valueBlob: aGVsbG8h`,
	},
	{
		Code: CodeNatsURL, Severity: SeverityError,
		Title: "the address of NATS cannot be used",
		Text:  "Write nats://HOST:4222, tls://, ws:// or wss://, several joined by commas.",
		Wrong: `url: http://nats:4222`,
		Right: `url: nats://nats:4222`,
	},
	{
		Code: CodeDeliverPolicy, Severity: SeverityError,
		Title: "deliver_policy says something that does not exist",
		Text:  "all, new, last, last_per_subject, \"by_start_sequence N\" with a number above 0, or \"by_start_time MILLISECONDS\" with the time since 1970.",
		Wrong: `deliver_policy: latest`,
		Right: `deliver_policy: last`,
	},
	{
		Code: CodePort, Severity: SeverityError,
		Title: "the port cannot be used",
		Text:  "Ports go from 1 to 65535, http and https need two, and a vertex uses 2469 and 2470 itself.",
		Wrong: `ports: {https: 8443, http: 8443}`,
		Right: `ports: {https: 8443, http: 8090}`,
	},
	{
		Code: CodeServing, Severity: SeverityError,
		Title: "something that a ServingPipeline does differently",
		Text:  "The source serving and the sink serve connect a pipeline with the HTTP server of a ServingPipeline, so that they work nowhere else; a ServingPipeline has such a source, and no reduce, because its windows would mix requests.",
		Wrong: `kind: Pipeline
spec:
  vertices:
  - {name: in, source: {serving: {}}}`,
		Right: `kind: ServingPipeline
spec:
  pipeline:
    vertices:
    - {name: in, source: {serving: {}}}`,
	},
	{
		Code: CodeSqs, Severity: SeverityError,
		Title: "a setting of SQS is wrong",
		Text:  "An AWS account has twelve digits, in quotes so that a leading 0 stays. A request takes 1 to 10 messages and waits at most 20 seconds; a message is hidden for at most 43200.",
		Wrong: `queueOwnerAWSAccountID: "1234-5678-9012"`,
		Right: `queueOwnerAWSAccountID: "123456789012"`,
	},
	{
		Code: CodeAssumeRole, Severity: SeverityError,
		Title: "the role to assume is wrong",
		Text:  "roleArn is arn:aws:iam::ACCOUNT:role/NAME, durationSeconds 900 to 43200, sessionName 2 to 64 letters, digits or characters of _=,.@-",
		Wrong: `roleArn: my-role`,
		Right: `roleArn: arn:aws:iam::123456789012:role/my-role`,
	},
	{
		Code: CodeKafka, Severity: SeverityError,
		Title: "a setting of Kafka is wrong",
		Text:  "topic is one name or several joined by commas; config is a YAML object in a text.",
		Wrong: `config: "- a"`,
		Right: `config: |
  fetch.min.bytes: 1`,
	},
	{
		Code: CodeConsumerGroup, Severity: SeverityWarning,
		Title: "a kafka source without a consumer group",
		Text:  "Progress is kept under the name of the group. Without one, a restart reads everything again, or what the broker makes of it.",
		Wrong: `kafka: {brokers: ["k:9092"], topic: t}`,
		Right: `kafka: {brokers: ["k:9092"], topic: t, consumerGroup: g}`,
	},
	{
		Code: CodeSASL, Severity: SeverityError,
		Title: "the mechanism lacks its settings",
		Text:  "Each mechanism has a field of its own: PLAIN plain, SCRAM-SHA-256 scramsha256, SCRAM-SHA-512 scramsha512, GSSAPI gssapi, OAUTHBEARER oauth.",
		Wrong: `sasl: {mechanism: PLAIN}`,
		Right: `sasl: {mechanism: PLAIN, plain: {userSecret: {...}, passwordSecret: {...}}}`,
	},
	{
		Code: CodeTLS, Severity: SeverityError,
		Title: "half of a client certificate",
		Text:  "A certificate is of use only with its key, and the other way round.",
		Wrong: `tls: {certSecret: {name: s, key: tls.crt}}`,
		Right: `tls: {certSecret: {name: s, key: tls.crt}, keySecret: {name: s, key: tls.key}}`,
	},
	{
		Code: CodeSubject, Severity: SeverityError,
		Title: "the subject cannot be used",
		Text:  "Subjects are words joined by dots. A reader may use * for a word and > for the rest; a writer may not.",
		Wrong: `subject: orders.>   # in a sink`,
		Right: `subject: orders.new`,
	},
	{
		Code: CodeStreamTarget, Severity: SeverityError,
		Title: "the producer of the stream cannot be named so",
		Text:  "A producer is named as gRPC does it: dns:///HOST:PORT, or HOST:PORT, or unix:PATH. Whether the connection has TLS is said by tls, not by the target.",
		Wrong: `target: https://producer:50051`,
		Right: `target: dns:///producer:50051
tls: {}`,
	},
	{
		Code: CodeDelimiter, Severity: SeverityError,
		Title: "the delimiter cannot separate fields",
		Text:  "The fields of a csv record are separated by one ASCII character other than a quote and a line end. A tab may be written as \\t.",
		Wrong: `delimiter: '::'`,
		Right: `delimiter: ';'`,
	},
	{
		Code: CodeSinkType, Severity: SeverityError,
		Title: "not exactly one type of sink",
		Text:  "A sink is one of log, blackhole, kafka, pulsar, sqs, udsink, serve, file, stdout, jetstream, nats; so are its fallback and onSuccess.",
		Wrong: `sink:
  log: {}
  blackhole: {}`,
		Right: `sink:
  log: {}`,
	},
	{
		Code: CodeFallback, Severity: SeverityError,
		Title: "a fallback that does not exist",
		Text:  "onFailure: fallback gives what could not be delivered to the fallback of the same sink. Functions and transformers have none.",
		Wrong: `retryStrategy: {onFailure: fallback}`,
		Right: `fallback: {log: {}}
retryStrategy: {onFailure: fallback}`,
	},
	{
		Code: CodeBackoff, Severity: SeverityError,
		Title: "a number of the backoff is out of range",
		Text:  "steps is at least 1, factor at least 1, jitter from 0 to below 1, and cap not below interval.",
		Wrong: `backoff: {interval: 10s, cap: 1s}`,
		Right: `backoff: {interval: 1s, cap: 10s}`,
	},
	{
		Code: CodeStreamLog, Severity: SeverityError,
		Title: "the stream would be forgotten at once",
		Text:  "A stream sink forgets what is above maxBytes (at least 1Mi) or older than maxAge (at least 1s). Without them it keeps everything. A reader that was disconnected for longer gets POSITION_GONE, so the limits should cover the longest time for which readers may be disconnected.",
		Wrong: `stream: {listen: ":50051", name: results, maxBytes: 10k}`,
		Right: `stream: {listen: ":50051", name: results, maxBytes: 10Gi, maxAge: 168h}`,
	},
	{
		Code: CodeRotation, Severity: SeverityError,
		Title: "the rotation of a file cannot work",
		Text:  "A file sink renames its file once it has size bytes (at least 1Ki) or at each multiple of every (at least 1s), and keeps the given number of earlier files (at least 1), or all.",
		Wrong: `file: {path: out.txt, rotate: {keep: 7}}`,
		Right: `file: {path: out.txt, rotate: {every: 24h, keep: 7}}`,
	},
	{
		Code: CodeNothingToRun, Severity: SeverityError,
		Title: "nothing to run",
		Text:  "A user's container needs an image; or a command without an image, which levada run starts as a program beside itself; or the annotation levada.io/function.VERTEX, which names such a program.",
		Wrong: `udsink: {container: {}}`,
		Right: `udsink: {container: {image: "quay.io/me/sink:1"}}`,
	},
	{
		Code: CodeContainerAndBuiltin, Severity: SeverityError,
		Title: "a container and a builtin",
		Text:  "A function is either a container of yours or one that Levada brings along.",
		Wrong: `udf:
  container: {image: cat}
  builtin: {name: cat}`,
		Right: `udf:
  builtin: {name: cat}`,
	},
	{
		Code: CodeExpression, Severity: SeverityError,
		Title: "an argument is too long",
		Text:  "Arguments of built-in functions may have 4096 characters: a longer expression takes more memory to parse than it is worth.",
		Wrong: `kwargs: {expression: "(5000 characters)"}`,
		Right: `kwargs: {expression: "json(payload).total > 10"}`,
	},
	{
		Code: CodeWindow, Severity: SeverityError,
		Title: "not exactly one window",
		Text:  "A reduce has one of fixed, sliding, session and accumulator.",
		Wrong: `window: {}`,
		Right: `window: {fixed: {length: 60s}}`,
	},
	{
		Code: CodeWindowLength, Severity: SeverityError,
		Title: "the window has no length",
		Text:  "length, slide and timeout are above 0.",
		Wrong: `fixed: {length: 0s}`,
		Right: `fixed: {length: 60s}`,
	},
	{
		Code: CodeStorage, Severity: SeverityError,
		Title: "a reduce without storage, or with several",
		Text:  "Open windows are kept in exactly one of persistentVolumeClaim (outlives the pod), emptyDir (outlives the container) and no_store (outlives nothing).",
		Wrong: `groupBy:
  window: {fixed: {length: 60s}}`,
		Right: `groupBy:
  window: {fixed: {length: 60s}}
  storage: {persistentVolumeClaim: {volumeSize: 10Gi}}`,
	},
	{
		Code: CodeReduceRetry, Severity: SeverityError,
		Title: "a reduce with a retryStrategy",
		Text:  "A reduce answers for a window, not for a message, so that there is nothing to try again by itself.",
		Wrong: `udf: {groupBy: {...}, retryStrategy: {...}}`,
		Right: `udf: {groupBy: {...}}`,
	},
	{
		Code: CodeSlideGaps, Severity: SeverityWarning,
		Title: "gaps between sliding windows",
		Text:  "When slide is more than length, some messages are in no window and are never seen by the function.",
		Wrong: `sliding: {length: 10s, slide: 60s}`,
		Right: `sliding: {length: 60s, slide: 10s}`,
	},
	{
		Code: CodeLimits, Severity: SeverityError,
		Title: "a limit is out of range",
		Text:  "readBatchSize, concurrency and bufferMaxLength are at least 1, bufferUsageLimit is 1 to 100 percent.",
		Wrong: `limits: {bufferUsageLimit: 120}`,
		Right: `limits: {bufferUsageLimit: 80}`,
	},
	{
		Code: CodeRateLimit, Severity: SeverityError,
		Title: "the rate limit is incomplete or out of range",
		Text:  "max is the number of messages per second, at least 1, and may come from the pipeline. Percentages go from 0 to 100.",
		Wrong: `rateLimit: {min: 10}`,
		Right: `rateLimit: {min: 10, max: 100}`,
	},
	{
		Code: CodeRateBounds, Severity: SeverityError,
		Title: "the rate limit starts above its end",
		Text:  "The limit grows from min to max. Numaflow does not check this, and computes a huge number.",
		Wrong: `rateLimit: {min: 100, max: 10}`,
		Right: `rateLimit: {min: 10, max: 100}`,
	},
	{
		Code: CodeRateModes, Severity: SeverityError,
		Title: "several modes at once",
		Text:  "The limit moves in one of the modes relaxed, scheduled, onlyIfUsed, goBackN.",
		Wrong: `modes: {relaxed: {}, scheduled: {}}`,
		Right: `modes: {scheduled: {}}`,
	},
	{
		Code: CodeRateStore, Severity: SeverityError,
		Title: "the store of the rate limit is wrong",
		Text:  "The pods of a vertex agree in Redis, or each counts for itself in memory. Redis in mode sentinel needs masterName and endpoints.",
		Wrong: `store: {redisStore: {mode: sentinel}}`,
		Right: `store: {redisStore: {mode: sentinel, sentinel: {masterName: m, endpoints: ["s:26379"]}}}`,
	},
	{
		Code: CodeCompression, Severity: SeverityError,
		Title: "the compression does not exist",
		Text:  "none, gzip, zstd or lz4, in lower or upper case. (Numaflow documents upper case and reads lower case.)",
		Wrong: `compression: {type: snappy}`,
		Right: `compression: {type: zstd}`,
	},
	{
		Code: CodeIdleSource, Severity: SeverityError,
		Title: "the steps of an idle source do not fit",
		Text:  "incrementBy is at most threshold, and initSourceDelay at least. A larger step would move the watermark past messages that are still to come.",
		Wrong: `idleSource: {threshold: 5s, incrementBy: 10s}`,
		Right: `idleSource: {threshold: 10s, incrementBy: 5s}`,
	},
	{
		Code: CodeSchedule, Severity: SeverityError,
		Title: "the schedule of a side input is not understood",
		Text:  "Six or seven fields with the seconds first, or @hourly, @daily, @weekly, @monthly, @yearly. Numaflow documents @every and common five-field cron, but its data plane refuses both, and only once the pod is running.",
		Wrong: `schedule: "*/5 * * * *"`,
		Right: `schedule: "0 */5 * * * *"`,
	},
	{
		Code: CodeTimezone, Severity: SeverityError,
		Title: "the time zone does not exist",
		Text:  "Time zones have IANA names. Numaflow uses UTC when it does not know one, and says nothing.",
		Wrong: `timezone: Europe/Lisboa`,
		Right: `timezone: Europe/Lisbon`,
	},
	{
		Code: CodeSideInputTwice, Severity: SeverityError,
		Title: "a side input is there twice",
		Text:  "Side inputs have different names, and a vertex lists each once.",
		Wrong: `sideInputs: [prices, prices]`,
		Right: `sideInputs: [prices]`,
	},
	{
		Code: CodeSideInputUnknown, Severity: SeverityError,
		Title: "there is no such side input",
		Text:  "A vertex lists names of spec.sideInputs.",
		Wrong: `sideInputs: [price]`,
		Right: `sideInputs: [prices]`,
	},
	{
		Code: CodeCronScale, Severity: SeverityError,
		Title: "scaling by the clock is set up wrongly",
		Text:  "start and end are cron expressions of six fields with the seconds first, on the same days, and not the same. scale must not be disabled.",
		Wrong: `schedules:
- {start: "0 8 * * *", end: "0 18 * * *", min: 2, max: 5}`,
		Right: `schedules:
- {start: "0 0 8 * * *", end: "0 0 18 * * *", min: 2, max: 5}`,
	},
	{
		Code: CodeNoJetStream, Severity: SeverityError,
		Title: "the buffer service is of no type",
		Text:  "A buffer service is jetstream or redis.",
		Wrong: `spec: {}`,
		Right: `spec:
  jetstream: {version: latest}`,
	},
	{
		Code: CodeJetStreamVersion, Severity: SeverityWarning,
		Title: "an unusual version of NATS",
		Text:  "The version is not in the list that Numaflow's controller is shipped with. It works if your operator is configured with it.",
		Wrong: `version: 2.9`,
		Right: `version: 2.9.15`,
	},
	{
		Code: CodeISBReplicas, Severity: SeverityError,
		Title: "the number of servers is not possible",
		Text:  "One server, or three and more: a majority of two is two, so that the second server only makes failures more likely.",
		Wrong: `replicas: 2`,
		Right: `replicas: 3`,
	},
	{
		Code: CodeBufferConfig, Severity: SeverityError,
		Title: "bufferConfig is wrong",
		Text:  "bufferConfig is YAML in a text, with stream, consumer, otBucket and procBucket.",
		Wrong: `bufferConfig: "stream"`,
		Right: `bufferConfig: |
  stream: {maxMsgs: 100000}`,
	},
	{
		Code: CodeISBSettings, Severity: SeverityError,
		Title: "settings is wrong",
		Text:  "settings is a fragment of nats.conf; max_payload (at most 64MB), max_memory_store and max_file_store are read. include and environment variables are not supported.",
		Wrong: `settings: |
  max_payload`,
		Right: `settings: |
  max_payload: 1048576`,
	},
	{
		Code: CodeISBUnknown, Severity: SeverityWarning,
		Title: "the buffer service is not in these files",
		Text:  "The manifests define buffer services in this namespace, and none of them has the name that the pipeline uses. In a cluster the pipeline would wait for it; levada run uses its own broker whatever the name.",
		Wrong: `interStepBufferServiceName: defualt`,
		Right: `interStepBufferServiceName: default`,
	},
	{
		Code: CodeRedisService, Severity: SeverityError,
		Title: "the Redis of the buffer service is wrong",
		Text:  "redis is external, with url or with sentinelUrl and masterName, or native, with a version. Passwords are in secrets and not in URLs.",
		Wrong: `redis:
  external: {sentinelUrl: "redis:26379"}`,
		Right: `redis:
  external: {sentinelUrl: "redis:26379", masterName: orders}`,
	},
	{
		Code: CodeRetention, Severity: SeverityWarning,
		Title: "the retention costs something",
		Text:  "0 keeps messages until the limits of the stream are reached. 1 deletes at once what arrives before its reader is set up. 2 deletes what was acknowledged, so that there is nothing to replay or to look at.",
		Wrong: `stream: {retention: 1}`,
		Right: `stream: {retention: 0}`,
	},
	{
		Code: CodeMaxAge, Severity: SeverityWarning,
		Title: "old messages are deleted unread",
		Text:  "maxAge deletes messages by age alone. A pipeline that is paused or broken for longer loses what waited.",
		Wrong: `stream: {maxAge: 72h}`,
		Right: `stream: {maxAge: 0s}`,
	},
	{
		Code: CodeMemoryStorage, Severity: SeverityWarning,
		Title: "messages are kept in memory",
		Text:  "With storage 1 a server that restarts has forgotten its messages; with one replica, or when all restart together, they are lost.",
		Wrong: `stream: {storage: 1}`,
		Right: `stream: {storage: 0}`,
	},
	{
		Code: CodeDiscardOld, Severity: SeverityWarning,
		Title: "a full buffer deletes what was not read",
		Text:  "With discard old a writer never waits, and the reader misses what was deleted. With discard new the writer waits.",
		Wrong: `stream: {discard: old}`,
		Right: `stream: {discard: new}`,
	},
	{
		Code: CodeISBOneServer, Severity: SeverityWarning,
		Title: "one single server",
		Text:  "Everything stops while the server restarts, and with its disk all messages are gone. Right for a test.",
		Wrong: `replicas: 1`,
		Right: `replicas: 3`,
	},
	{
		Code: CodeISBOneMachine, Severity: SeverityWarning,
		Title: "servers may share a machine",
		Text:  "Kubernetes may put all servers on one machine, and a majority that fails together loses what it acknowledged. A pod anti-affinity on kubernetes.io/hostname spreads them.",
		Wrong: `jetstream: {replicas: 3}`,
		Right: `jetstream:
  replicas: 3
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {numaflow.numaproj.io/isbsvc-name: default}`,
	},
	{
		Code: CodeDuplicates, Severity: SeverityWarning,
		Title: "messages may count twice",
		Text:  "The server remembers message ids for the time duplicates. When a message is delivered again after ackWait and written again, its id must still be known.",
		Wrong: `stream: {duplicates: 10s}`,
		Right: `stream: {duplicates: 60s}`,
	},
	{
		Code: CodeISBNoVolume, Severity: SeverityWarning,
		Title: "no volume",
		Text:  "Without persistence the servers write to a directory that goes with the pod. Right for a test.",
		Wrong: `jetstream: {version: latest}`,
		Right: `jetstream:
  version: latest
  persistence: {volumeSize: 20Gi}`,
	},
	{
		Code: CodeStreamReplicas, Severity: SeverityWarning,
		Title: "messages are stored less often than they could",
		Text:  "Streams with fewer than three replicas lose messages when one server is lost, whatever the number of servers.",
		Wrong: `stream: {replicas: 1}`,
		Right: `stream: {replicas: 3}`,
	},
	{
		Code: CodeMonoVertexEnds, Severity: SeverityError,
		Title: "a MonoVertex without a source or a sink",
		Text:  "A MonoVertex has both, and optionally a udf between them.",
		Wrong: `spec:
  source: {generator: {}}`,
		Right: `spec:
  source: {generator: {}}
  sink: {log: {}}`,
	},
	{
		Code: CodeMonoVertexReduce, Severity: SeverityError,
		Title: "a MonoVertex with windows",
		Text:  "A MonoVertex has no buffer that could keep the messages of a window. A reduce needs a Pipeline.",
		Wrong: `kind: MonoVertex
spec: {udf: {groupBy: {...}}}`,
		Right: `kind: Pipeline`,
	},
	{
		Code: CodeMonoVertexStreaming, Severity: SeverityError,
		Title: "a kafka source cannot stream",
		Text:  "Kafka commits the highest offset of a partition, so that acknowledging message by message would commit others that are still on their way.",
		Wrong: `source: {kafka: {...}}
streaming: true`,
		Right: `source: {kafka: {...}}`,
	},
	{
		Code: CodeBypass, Severity: SeverityError,
		Title: "the bypass leads nowhere",
		Text:  "bypass sends messages to the sink, its fallback or its onSuccess, and that must exist.",
		Wrong: `bypass: {fallback: {tags: {values: [bad]}}}
sink: {log: {}}`,
		Right: `bypass: {fallback: {tags: {values: [bad]}}}
sink: {log: {}, fallback: {blackhole: {}}}`,
	},
	{
		Code: CodeImmutable, Severity: SeverityError,
		Title: "the field cannot be changed",
		Text:  "Buffers live in one buffer service, and messages in them would stay behind.",
		Wrong: `interStepBufferServiceName: other`,
		Right: `interStepBufferServiceName: default`,
	},
	{
		Code: CodeImmutableInstance, Severity: SeverityError,
		Title: "the instance cannot be changed",
		Text:  "The annotation says which operator looks after the object. Two of them would work against each other.",
		Wrong: `numaflow.numaproj.io/instance: b`,
		Right: `numaflow.numaproj.io/instance: a`,
	},
	{
		Code: CodeImmutableVertex, Severity: SeverityError,
		Title: "the role of a vertex cannot be changed",
		Text:  "A source has no buffer and a sink has no edges out, so that a vertex with another role is another vertex. Give it a new name.",
		Wrong: `- name: a
  sink: {log: {}}   # was a udf`,
		Right: `- name: b
  sink: {log: {}}`,
	},
	{
		Code: CodeImmutableReduce, Severity: SeverityError,
		Title: "partitions and storage of a reduce cannot be changed",
		Text:  "Open windows are kept per partition, in the storage. A change would lose or split them. Give the vertex a new name.",
		Wrong: `partitions: 3   # was 2`,
		Right: `partitions: 2`,
	},
	{
		Code: CodeImmutableISB, Severity: SeverityError,
		Title: "the persistence of a buffer service cannot be changed",
		Text:  "Volumes of running servers cannot be replaced. Make another buffer service, and move the pipelines to it.",
		Wrong: `persistence: {volumeSize: 40Gi}   # was 20Gi`,
		Right: `persistence: {volumeSize: 20Gi}`,
	},
	{
		Code: CodeIgnoresScale, Severity: SeverityWarning,
		Title: "autoscaling is not done yet",
		Text:  "The manifest asks for autoscaling. This version runs a fixed number of replicas; set equal min and max, or disabled: true.",
		Wrong: `scale: {max: 5}`,
		Right: `scale: {min: 1, max: 1}`,
	},
	{
		Code: CodeIgnoresWatermark, Severity: SeverityWarning,
		Title: "a watermark setting is not used yet",
		Text:  "This version accepts the setting and does not act on it.",
		Wrong: `watermark: {maxDelay: 10s}`,
		Right: `watermark: {}`,
	},
	{
		Code: CodeIgnoresSideInputs, Severity: SeverityWarning,
		Title: "side inputs are not fetched yet",
		Text:  "This version accepts side inputs and does not provide them to functions.",
		Wrong: `sideInputs: [...]`,
		Right: `(none)`,
	},
	{
		Code: CodeIgnoresUpdateStrategy, Severity: SeverityWarning,
		Title: "the update strategy is not followed yet",
		Text:  "This version does not replace pods in steps.",
		Wrong: `updateStrategy: {rollingUpdate: {maxUnavailable: 1}}`,
		Right: `(none)`,
	},
	{
		Code: CodeIgnoresRedisRateLimit, Severity: SeverityWarning,
		Title: "the store of the rate limit is not used",
		Text:  "All processes of a vertex together keep its limit. They agree on it through the buffer service of the pipeline, and connect to no other server for it.",
		Wrong: `store: {redisStore: {mode: single, url: redis://r:6379}}`,
		Right: `store: {inMemoryStore: {}}`,
	},
	{
		Code: CodeIgnoresTemplates, Severity: SeverityWarning,
		Title: "templates are not applied yet",
		Text:  "This version does not change pods by templates.",
		Wrong: `templates: {vertex: {...}}`,
		Right: `(none)`,
	},
	{
		Code: CodeIgnoresContainer, Severity: SeverityWarning,
		Title: "only a cluster does this",
		Text:  "levada run starts functions as processes. It has no use for resources, probes, security contexts, init containers and sidecars.",
		Wrong: `container: {securityContext: {runAsUser: 1000}}`,
		Right: `levada run --function-user 1000`,
	},
	{
		Code: CodeIgnoresNativeRedis, Severity: SeverityWarning,
		Title: "Levada starts no Redis servers",
		Text:  "A native Redis is one that an operator starts. levada run needs the URL of a Redis that exists, and fails without one.",
		Wrong: `redis: {native: {version: 7.0.15}}`,
		Right: `redis: {external: {url: redis://127.0.0.1:6379}}   # or levada run --redis redis://127.0.0.1:6379`,
	},
	{
		Code: CodeNoReduce, Severity: SeverityError,
		Title: "reduce is not possible yet",
		Text:  "The manifest is valid, and can be rendered and applied. The engine of this version has no windows, so that it cannot run it.",
		Wrong: `udf: {groupBy: {...}}`,
		Right: `udf: {builtin: {name: cat}}`,
	},
	{
		Code: CodeNoSource, Severity: SeverityError,
		Title: "this source is not possible yet",
		Text:  "The manifest is valid. The engine of this version cannot read from kafka, pulsar, sqs and serving.",
		Wrong: `source: {kafka: {...}}`,
		Right: `source: {jetstream: {...}}`,
	},
	{
		Code: CodeNoSink, Severity: SeverityError,
		Title: "this sink is not possible yet",
		Text:  "The manifest is valid. The engine of this version cannot write to kafka, pulsar, sqs and serve.",
		Wrong: `sink: {kafka: {...}}`,
		Right: `sink: {jetstream: {...}}`,
	},
	{
		Code: CodeNoStart, Severity: SeverityError,
		Title: "levada run could not start this",
		Text:  "A program, a value of a ConfigMap or a Secret, or a volume is missing, or there is nothing to run. levada run refuses the manifest for the same reason.",
		Wrong: `udf: {container: {image: my-image}}`,
		Right: `levada run --function my-vertex=./my-program`,
	},
}
