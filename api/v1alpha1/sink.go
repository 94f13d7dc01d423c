package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Sink takes messages out.
type Sink struct {
	AbstractSink `json:",inline"`

	// Fallback receives what the user-defined sink answers with "fallback", and what retries could not deliver.
	Fallback *AbstractSink `json:"fallback,omitempty"`

	// OnSuccess receives what the user-defined sink answers with "on success", after it was delivered.
	OnSuccess *AbstractSink `json:"onSuccess,omitempty"`

	// RetryStrategy for messages that the user-defined sink answers with a failure.
	RetryStrategy RetryStrategy `json:"retryStrategy,omitzero"`
}

// AbstractSink is where messages go. Exactly one field is set.
type AbstractSink struct {
	Log       *Log        `json:"log,omitempty"`
	Kafka     *KafkaSink  `json:"kafka,omitempty"`
	Blackhole *Blackhole  `json:"blackhole,omitempty"`
	UDSink    *UDSink     `json:"udsink,omitempty"`
	Serve     *ServeSink  `json:"serve,omitempty"`
	Sqs       *SqsSink    `json:"sqs,omitempty"`
	Pulsar    *PulsarSink `json:"pulsar,omitempty"`

	// Levada: File appends to a file.
	File *FileSink `json:"file,omitempty"`
	// Levada: Stdout writes to the standard output.
	Stdout *StdoutSink `json:"stdout,omitempty"`
	// Levada: JetStream publishes to a stream.
	JetStream *JetStreamSink `json:"jetstream,omitempty"`
	// Levada: Nats publishes to a subject of core NATS.
	Nats *NatsSink `json:"nats,omitempty"`
	// Levada: Stream serves what it gets as a resumable gRPC stream.
	Stream *StreamSink `json:"stream,omitempty"`
}

// Log writes a line per message to the log.
type Log struct{}

// Blackhole counts messages and drops them.
type Blackhole struct{}

// ServeSink writes the response of a ServingPipeline.
type ServeSink struct{}

// KafkaSink writes to a topic.
type KafkaSink struct {
	// Brokers are host:port pairs, at least one.
	Brokers []string `json:"brokers,omitempty"`
	Topic   string   `json:"topic"`
	// SetKey makes the keys of a message, joined by ':', the key of the record. Default: false.
	SetKey bool `json:"setKey,omitempty"`
	TLS    *TLS `json:"tls,omitempty"`
	// Config is YAML: further settings of the Kafka client, by librdkafka's names.
	Config string `json:"config,omitempty"`
	SASL   *SASL  `json:"sasl,omitempty"`
}

// SqsSink writes to a queue of AWS SQS.
type SqsSink struct {
	AWSRegion string `json:"awsRegion"`
	QueueName string `json:"queueName"`
	// QueueOwnerAWSAccountID is the twelve-digit account that owns the queue.
	QueueOwnerAWSAccountID string         `json:"queueOwnerAWSAccountID"`
	AssumeRole             *AWSAssumeRole `json:"assumeRole,omitempty"`
}

// PulsarSink writes to a topic.
type PulsarSink struct {
	ServerAddr   string      `json:"serverAddr"`
	Topic        string      `json:"topic"`
	ProducerName string      `json:"producerName"`
	Auth         *PulsarAuth `json:"auth,omitempty"`
}

// UDSink writes through a user's container.
type UDSink struct {
	Container *Container `json:"container,omitempty"`
}

// OutputFormat says how a message is written to a file or the standard output.
type OutputFormat string

// The formats of what is written.
const (
	OutputFormatRaw  OutputFormat = "raw"  // the payload and a newline
	OutputFormatJSON OutputFormat = "json" // an object a line: id, keys, eventTime, headers, value
)

// FileSink appends to a file. (Levada)
type FileSink struct {
	// Path of the file, as the pod or the process sees it. Required.
	Path string `json:"path"`
	// Format is raw or json. Default: raw.
	Format OutputFormat `json:"format,omitempty"`
	// Rotate says when the file is renamed and a new one begun. Default: never.
	Rotate *FileRotation `json:"rotate,omitempty"`
}

// FileRotation renames a file to PATH.TIME and begins a new one. (Levada)
type FileRotation struct {
	// Size begins a new file once this one has so many bytes, at least 1Mi. Default: any size.
	Size *resource.Quantity `json:"size,omitempty"`
	// Every begins a new file at each multiple of it (UTC), at least 1m. Default: never.
	Every *metav1.Duration `json:"every,omitempty"`
	// Keep is how many earlier files are kept, at least 1; older ones are removed. Default: all.
	Keep *int32 `json:"keep,omitempty"`
}

// StdoutSink writes to the standard output. (Levada)
type StdoutSink struct {
	// Format is raw or json. Default: raw.
	Format OutputFormat `json:"format,omitempty"`
}

// JetStreamSink publishes to a stream and waits until it is stored there. (Levada)
type JetStreamSink struct {
	URL string `json:"url,omitempty"`
	// Stream is the stream that must hold Subject; nothing is published to another. Default: whichever holds it.
	Stream string `json:"stream,omitempty"`
	// Subject to publish to. Required.
	Subject string    `json:"subject"`
	TLS     *TLS      `json:"tls,omitempty"`
	Auth    *NatsAuth `json:"auth,omitempty"`
}

// NatsSink publishes to a subject of core NATS, which confirms nothing: who does not listen misses it. (Levada)
type NatsSink struct {
	URL     string    `json:"url"`
	Subject string    `json:"subject"`
	TLS     *TLS      `json:"tls,omitempty"`
	Auth    *NatsAuth `json:"auth,omitempty"`
}

// StreamSink keeps messages in a log on the disk, each once, and serves it as a resumable gRPC stream (levada.stream.v1). (Levada)
type StreamSink struct {
	// Listen is the address to serve on, HOST:PORT or :PORT. Required.
	Listen string `json:"listen"`
	// Name of the stream. Required.
	Name string `json:"name"`
	// Payload is value or message: what of a message a record holds. Default: value.
	Payload StreamPayload `json:"payload,omitempty"`
	// MaxBytes is the size above which the oldest messages are forgotten, at least 1Mi. Default: no limit.
	MaxBytes *resource.Quantity `json:"maxBytes,omitempty"`
	// MaxAge is the age above which messages are forgotten. Default: no limit.
	MaxAge *metav1.Duration `json:"maxAge,omitempty"`
	// TLS is how the stream is served. Default: without TLS.
	TLS *ServerTLS `json:"tls,omitempty"`
}

// OnFailure is what happens to a message that all retries failed to deliver.
type OnFailure string

// What may happen to a message that all retries failed to deliver.
const (
	OnFailureRetry    OnFailure = "retry"    // begin the retries again
	OnFailureFallback OnFailure = "fallback" // give it to the fallback sink
	OnFailureDrop     OnFailure = "drop"     // drop it, and count it
)

// RetryStrategy says how often and how fast a failed message is tried again.
type RetryStrategy struct {
	// BackOff between two tries.
	BackOff *Backoff `json:"backoff,omitempty"`
	// OnFailure is retry, fallback or drop: what happens after the last try. Default: retry.
	OnFailure *OnFailure `json:"onFailure,omitempty"`
}

// Backoff is the pause between two tries: Interval, times Factor after each try, at most Cap.
type Backoff struct {
	// Interval is the first pause. Default: 1ms.
	Interval *metav1.Duration `json:"interval,omitempty"`
	// Steps is the number of tries, not 0. Default: no end.
	Steps *uint32 `json:"steps,omitempty"`
	// Factor multiplies the pause after each try, at least 1. Default: 1.
	Factor *float64 `json:"factor,omitempty"`
	// Cap is the longest pause, at least Interval. Default: none.
	Cap *metav1.Duration `json:"cap,omitempty"`
	// Jitter is the random share that is added to a pause, 0 to below 1. Default: 0.
	Jitter *float64 `json:"jitter,omitempty"`
}
