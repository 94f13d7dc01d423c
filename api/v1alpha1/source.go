package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Source brings messages in. Exactly one field is set; Transformer may accompany any.
type Source struct {
	Generator *GeneratorSource `json:"generator,omitempty"`
	Kafka     *KafkaSource     `json:"kafka,omitempty"`
	HTTP      *HTTPSource      `json:"http,omitempty"`
	Nats      *NatsSource      `json:"nats,omitempty"`

	// Transformer changes messages inside the source, before their event time makes the watermark.
	Transformer *UDTransformer `json:"transformer,omitempty"`

	UDSource  *UDSource        `json:"udsource,omitempty"`
	JetStream *JetStreamSource `json:"jetstream,omitempty"`
	Serving   *ServingSource   `json:"serving,omitempty"`
	Pulsar    *PulsarSource    `json:"pulsar,omitempty"`
	Sqs       *SqsSource       `json:"sqs,omitempty"`

	// Levada: File reads messages from a file.
	File *FileSource `json:"file,omitempty"`

	// Levada: Stdin reads messages from the standard input.
	Stdin *StdinSource `json:"stdin,omitempty"`

	// Levada: Stream reads a resumable gRPC stream.
	Stream *StreamSource `json:"stream,omitempty"`
}

// GeneratorSource makes messages, RPU of them every Duration and in every pod.
type GeneratorSource struct {
	// RPU is the number of messages in each Duration. Default: 5.
	RPU *int64 `json:"rpu,omitempty"`
	// Duration is the time between two bursts. Default: 1s.
	Duration *metav1.Duration `json:"duration,omitempty"`
	// MsgSize is the size of a payload in bytes; smaller ones are padded. Default: 8.
	MsgSize *int32 `json:"msgSize,omitempty"`
	// KeyCount is the number of keys that are given in turn. Default: no keys.
	KeyCount *int32 `json:"keyCount,omitempty"`
	// Value is the number in every payload. Default: the current time.
	Value *uint64 `json:"value,omitempty"`
	// Jitter is the most that an event time lies before the time of its making. Default: 0s.
	Jitter *metav1.Duration `json:"jitter,omitempty"`
	// ValueBlob is the payload of every message, in base64. It takes the place of MsgSize and Value.
	ValueBlob *string `json:"valueBlob,omitempty"`
}

// HTTPSource takes messages by POST /vertices/{vertex}, and answers when they are safe.
type HTTPSource struct {
	// Auth asks callers for a bearer token. Default: none.
	Auth *Authorization `json:"auth,omitempty"`
	// Service makes a ClusterIP service for the vertex. Default: false.
	Service bool `json:"service,omitempty"`
	// Ports to listen on. Default: https 8443, no http.
	Ports *Ports `json:"ports,omitempty"`
}

// Authorization is a bearer token in a secret.
type Authorization struct {
	Token *corev1.SecretKeySelector `json:"token,omitempty"`
}

// Ports that a server listens on.
type Ports struct {
	// HTTPS is the TLS port. Default: 8443.
	HTTPS *int32 `json:"https,omitempty"`
	// HTTP is the plain port. Default: closed.
	HTTP *int32 `json:"http,omitempty"`
}

// KafkaSource reads topics with a consumer group.
type KafkaSource struct {
	// Brokers are host:port pairs, at least one.
	Brokers []string `json:"brokers,omitempty"`
	// Topic is one topic, or several joined by commas.
	Topic string `json:"topic"`
	// ConsumerGroup is the group whose offsets are committed. Without one a restart reads everything again.
	ConsumerGroup string `json:"consumerGroup,omitempty"`
	TLS           *TLS   `json:"tls,omitempty"`
	// Config is YAML: further settings of the Kafka client, by librdkafka's names.
	Config string `json:"config,omitempty"`
	SASL   *SASL  `json:"sasl,omitempty"`
	// KafkaVersion is accepted and not used: versions are negotiated.
	KafkaVersion string `json:"kafkaVersion,omitempty"`
}

// NatsSource subscribes to a subject of core NATS, which knows no acknowledgement: what is in flight at a crash is lost.
type NatsSource struct {
	URL     string `json:"url"`
	Subject string `json:"subject"`
	// Queue is the queue group, so that pods share the messages.
	Queue string    `json:"queue,omitempty"`
	TLS   *TLS      `json:"tls,omitempty"`
	Auth  *NatsAuth `json:"auth,omitempty"`
}

// JetStreamSource reads a stream that exists already, with a durable consumer.
type JetStreamSource struct {
	URL    string `json:"url"`
	Stream string `json:"stream"`
	// Consumer is the durable consumer's name. Default: numaflow-{pipeline}-{vertex}-{stream}.
	Consumer string `json:"consumer,omitempty"`
	// DeliverPolicy is where a new consumer starts: all, new, last, last_per_subject, "by_start_sequence N" or
	// "by_start_time MILLISECONDS". Default: all.
	DeliverPolicy string `json:"deliver_policy,omitempty"`
	// FilterSubjects are the subjects to read. Default: all of the stream.
	FilterSubjects []string  `json:"filter_subjects,omitempty"`
	TLS            *TLS      `json:"tls,omitempty"`
	Auth           *NatsAuth `json:"auth,omitempty"`
}

// ServingSource takes the requests of a ServingPipeline.
type ServingSource struct{}

// PulsarSource reads a topic with a shared subscription.
type PulsarSource struct {
	ServerAddr       string `json:"serverAddr"`
	Topic            string `json:"topic"`
	ConsumerName     string `json:"consumerName"`
	SubscriptionName string `json:"subscriptionName"`
	// MaxUnack is the most messages that may be in flight. Default: 1000.
	MaxUnack uint32      `json:"maxUnack,omitempty"`
	Auth     *PulsarAuth `json:"auth,omitempty"`
	// DeadLetterPolicy moves what fails again and again to another topic. Default: none.
	DeadLetterPolicy *PulsarDeadLetterPolicy `json:"deadLetterPolicy,omitempty"`
}

// PulsarDeadLetterPolicy moves a message to Topic after MaxRedelivery deliveries.
type PulsarDeadLetterPolicy struct {
	Topic         string `json:"topic"`
	MaxRedelivery uint32 `json:"maxRedelivery"`
}

// SqsSource reads a queue of AWS SQS.
type SqsSource struct {
	AWSRegion string `json:"awsRegion"`
	QueueName string `json:"queueName"`
	// QueueOwnerAWSAccountID is the twelve-digit account that owns the queue.
	QueueOwnerAWSAccountID string `json:"queueOwnerAWSAccountID"`
	// VisibilityTimeout is how many seconds a message is hidden from others, 0 to 43200. Default: 30.
	VisibilityTimeout *int32 `json:"visibilityTimeout,omitempty"`
	// MaxNumberOfMessages is how many messages a request asks for, 1 to 10. Default: 10.
	MaxNumberOfMessages *int32 `json:"maxNumberOfMessages,omitempty"`
	// WaitTimeSeconds is how long a request waits for messages, 0 to 20. Default: 0.
	WaitTimeSeconds *int32 `json:"waitTimeSeconds,omitempty"`
	// EndpointURL takes the place of AWS's own endpoint.
	EndpointURL *string `json:"endpointUrl,omitempty"`
	// AttributeNames are the system attributes to fetch.
	AttributeNames []string `json:"attributeNames,omitempty"`
	// MessageAttributeNames are the message attributes to fetch.
	MessageAttributeNames []string       `json:"messageAttributeNames,omitempty"`
	AssumeRole            *AWSAssumeRole `json:"assumeRole,omitempty"`
}

// UDSource reads through a user's container.
type UDSource struct {
	Container *Container `json:"container,omitempty"`
}

// UDTransformer changes messages inside a source: payload, keys, tags and event time.
type UDTransformer struct {
	Container *Container `json:"container,omitempty"`
	// RetryStrategy for messages that the function answers with a failure.
	RetryStrategy *RetryStrategy `json:"retryStrategy,omitempty"`
	// Levada: Builtin takes the place of Container.
	Builtin *Builtin `json:"builtin,omitempty"`
}

// FileFormat says how a file or the standard input is cut into messages.
type FileFormat string

// The formats of a file that is read.
const (
	FileFormatLines  FileFormat = "lines"  // a message a line
	FileFormatNDJSON FileFormat = "ndjson" // a message a line; a line that is not a JSON value is malformed
	FileFormatCSV    FileFormat = "csv"    // a message a record, as a JSON object when there is a header, else as an array
)

// MalformedPolicy says what becomes of a record that cannot be read.
type MalformedPolicy string

// What may become of a malformed record.
const (
	MalformedDeadLetter MalformedPolicy = "deadLetter" // its raw bytes are kept as a dead letter, and the rest goes on
	MalformedSkip       MalformedPolicy = "skip"       // it is counted and logged, and the rest goes on
	MalformedFail       MalformedPolicy = "fail"       // the pipeline ends with an error
)

// FileSource reads a file once, or follows it as it grows. (Levada)
type FileSource struct {
	// Path of the file, as the pod or the process sees it. Required.
	Path string `json:"path"`
	// Format is lines, ndjson or csv. Default: lines.
	Format FileFormat `json:"format,omitempty"`
	// Follow waits for more at the end of the file. Default: false; the source is finite, and so is the pipeline.
	Follow bool `json:"follow,omitempty"`
	// CSVHeader says that the first record of a csv file names the columns. Default: true.
	CSVHeader *bool `json:"csvHeader,omitempty"`
	// Delimiter separates the fields of a csv record: one ASCII character, or \t for a tab. Default: a comma.
	Delimiter string `json:"delimiter,omitempty"`
	// OnMalformed says what becomes of a record that cannot be read: deadLetter, skip or fail. Default: deadLetter.
	OnMalformed MalformedPolicy `json:"onMalformed,omitempty"`
}

// StdinSource reads the standard input until its end. (Levada)
type StdinSource struct {
	// Format is lines, ndjson or csv. Default: lines.
	Format FileFormat `json:"format,omitempty"`
	// CSVHeader says that the first record of a csv input names the columns. Default: true.
	CSVHeader *bool `json:"csvHeader,omitempty"`
	// Delimiter separates the fields of a csv record: one ASCII character, or \t for a tab. Default: a comma.
	Delimiter string `json:"delimiter,omitempty"`
	// OnMalformed says what becomes of a record that cannot be read: deadLetter, skip or fail. Default: deadLetter.
	OnMalformed MalformedPolicy `json:"onMalformed,omitempty"`
}

// StreamPayload says what a record of a stream holds.
type StreamPayload string

// What a record of a stream may hold.
const (
	StreamPayloadValue   StreamPayload = "value"   // the payload of a message
	StreamPayloadMessage StreamPayload = "message" // a message as JSON: id, keys, eventTime, headers, value
)

// StreamSource reads a resumable gRPC stream (levada.stream.v1) in order, each record once. (Levada)
type StreamSource struct {
	// Target says where the producer is, as gRPC names it: dns:///producer:50051. Required.
	Target string `json:"target"`
	// Stream is the name of the stream at the producer. Required.
	Stream string `json:"stream"`
	// Query holds parameters for the stream's source at the producer. Default: none.
	Query string `json:"query,omitempty"`
	// Payload is value or message, as what the records hold is to be taken. Default: value; the record's key is the message's key then.
	Payload StreamPayload `json:"payload,omitempty"`
	// Partition names the stream in positions and message ids. Under another name it is read from its start. Default: Stream.
	Partition string `json:"partition,omitempty"`
	// TLS is how the producer is reached. Default: without TLS.
	TLS *TLS `json:"tls,omitempty"`
}
