package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// InterStepBufferService is the broker that holds the buffers of pipelines.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=isbsvc
type InterStepBufferService struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   InterStepBufferServiceSpec   `json:"spec"`
	Status InterStepBufferServiceStatus `json:"status,omitzero"`
}

// InterStepBufferServiceList is what a list request returns.
//
// +kubebuilder:object:root=true
type InterStepBufferServiceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []InterStepBufferService `json:"items"`
}

// InterStepBufferServiceSpec is what the user asks for.
type InterStepBufferServiceSpec struct {
	// JetStream is a cluster of NATS servers. Required, unless there is redis.
	JetStream *JetStreamBufferService `json:"jetstream,omitempty"`
	// Redis is a Redis 7 or later, in the form that Numaflow had until 1.3. (Levada)
	Redis *RedisBufferService `json:"redis,omitempty"`
}

// RedisBufferService is Redis, either one that exists or one that an operator starts.
type RedisBufferService struct {
	// Native is a set of Redis servers with Sentinels. Levada starts none: levada run needs --redis with it.
	Native *NativeRedis `json:"native,omitempty"`
	// External is a Redis that exists. levada run connects to it, unless --nats or --redis names another broker.
	External *RedisConfig `json:"external,omitempty"`
}

// RedisConfig says where a Redis is.
type RedisConfig struct {
	// URL is HOST:PORT, redis://HOST:PORT/DB, or rediss://HOST:PORT for TLS. Several addresses with commas between them are those of a Redis Cluster.
	URL string `json:"url,omitempty"`
	// SentinelURL is HOST:PORT of the Sentinels, with commas between them. It is ignored if there is a url.
	SentinelURL string `json:"sentinelUrl,omitempty"`
	// MasterName is what the Sentinels call the master. Required with sentinelUrl.
	MasterName string `json:"masterName,omitempty"`
	// User at the server. Default: default.
	User string `json:"user,omitempty"`
	// Password of the user.
	Password *corev1.SecretKeySelector `json:"password,omitempty"`
	// SentinelPassword is that of the Sentinels.
	SentinelPassword *corev1.SecretKeySelector `json:"sentinelPassword,omitempty"`
}

// NativeRedis is a set of Redis servers with Sentinels.
type NativeRedis struct {
	// Version of Redis. Required.
	Version string `json:"version,omitempty"`
	// Replicas is the number of servers. Default: 3.
	Replicas                  *int32             `json:"replicas,omitempty"`
	RedisContainerTemplate    *ContainerTemplate `json:"redisContainerTemplate,omitempty"`
	SentinelContainerTemplate *ContainerTemplate `json:"sentinelContainerTemplate,omitempty"`
	MetricsContainerTemplate  *ContainerTemplate `json:"metricsContainerTemplate,omitempty"`
	InitContainerTemplate     *ContainerTemplate `json:"initContainerTemplate,omitempty"`
	// Persistence is the volume of each server.
	Persistence *PersistenceStrategy `json:"persistence,omitempty"`

	AbstractPodTemplate `json:",inline"`

	// Settings are lines of redis.conf.
	Settings *RedisSettings `json:"settings,omitempty"`
}

// RedisSettings are lines of configuration files.
type RedisSettings struct {
	// Redis is for all servers, Master and Replica for one kind of them, Sentinel for the Sentinels.
	Redis    string `json:"redis,omitempty"`
	Master   string `json:"master,omitempty"`
	Replica  string `json:"replica,omitempty"`
	Sentinel string `json:"sentinel,omitempty"`
}

// JetStreamBufferService is a cluster of NATS servers with JetStream.
type JetStreamBufferService struct {
	// Version of the NATS server, or "latest". Required.
	Version string `json:"version,omitempty"`
	// Replicas is the number of servers: 1, or 3 and more. With fewer than three each message is stored once. Default: 3.
	Replicas                  *int32             `json:"replicas,omitempty"`
	ContainerTemplate         *ContainerTemplate `json:"containerTemplate,omitempty"`
	ReloaderContainerTemplate *ContainerTemplate `json:"reloaderContainerTemplate,omitempty"`
	MetricsContainerTemplate  *ContainerTemplate `json:"metricsContainerTemplate,omitempty"`
	// Persistence is the volume of each server. Default: none; messages go with the pod. Immutable.
	Persistence *PersistenceStrategy `json:"persistence,omitempty"`

	AbstractPodTemplate `json:",inline"`

	// Settings is a piece of nats.conf: max_payload, max_memory_store, max_file_store.
	Settings *string `json:"settings,omitempty"`
	// StartArgs are further arguments of nats-server.
	StartArgs []string `json:"startArgs,omitempty"`
	// BufferConfig is YAML: stream, consumer, otBucket, procBucket (see BufferConfig).
	BufferConfig *string `json:"bufferConfig,omitempty"`
	// Encryption of what is stored. Default: false.
	Encryption bool `json:"encryption,omitempty"`
	// TLS between clients and servers. Default: false.
	TLS bool `json:"tls,omitempty"`
}

// PersistenceStrategy is a volume claim.
type PersistenceStrategy struct {
	// StorageClassName of the claim. Default: the cluster's default class.
	StorageClassName *string `json:"storageClassName,omitempty"`
	// AccessMode of the claim. Default: ReadWriteOnce.
	AccessMode *corev1.PersistentVolumeAccessMode `json:"accessMode,omitempty"`
	// VolumeSize of the claim. Default: 20Gi.
	VolumeSize *resource.Quantity `json:"volumeSize,omitempty"`
}

// BufferConfig is the YAML inside JetStreamBufferService.BufferConfig. What is absent keeps its default.
//
// +kubebuilder:object:generate=false
type BufferConfig struct {
	Stream     StreamConfig   `json:"stream,omitzero"`
	Consumer   ConsumerConfig `json:"consumer,omitzero"`
	OTBucket   BucketConfig   `json:"otBucket,omitzero"`
	ProcBucket BucketConfig   `json:"procBucket,omitzero"`
}

// StreamConfig is how buffers are stored.
//
// +kubebuilder:object:generate=false
type StreamConfig struct {
	// Retention is 0 (limits), 1 (interest) or 2 (work queue). Default: 0.
	Retention *int `json:"retention,omitempty"`
	// MaxMsgs is the most messages in a buffer. Default: 100000.
	MaxMsgs *int64 `json:"maxMsgs,omitempty"`
	// MaxAge is when a message is deleted, read or not. Default: 72h.
	MaxAge *metav1.Duration `json:"maxAge,omitempty"`
	// MaxBytes is the most bytes in a buffer, -1 for no limit. Default: -1.
	MaxBytes *int64 `json:"maxBytes,omitempty"`
	// Storage is 0 (file) or 1 (memory). Default: 0.
	Storage *int `json:"storage,omitempty"`
	// Replicas is on how many servers a message is stored, 1 to 5. Default: 3.
	Replicas *int `json:"replicas,omitempty"`
	// Duplicates is how long the server remembers message ids. Default: 60s.
	Duplicates *metav1.Duration `json:"duplicates,omitempty"`
	// Discard is what a full stream refuses: "old" or "new", or 0 and 1. Default: new.
	Discard any `json:"discard,omitempty"`
}

// ConsumerConfig is how buffers are read.
//
// +kubebuilder:object:generate=false
type ConsumerConfig struct {
	// AckWait is how long the server waits for an acknowledgement before it delivers again. Default: 60s.
	AckWait *metav1.Duration `json:"ackWait,omitempty"`
	// MaxAckPending is the most messages in flight. Default: 25000.
	MaxAckPending *int64 `json:"maxAckPending,omitempty"`
}

// BucketConfig is how a key-value bucket is stored.
//
// +kubebuilder:object:generate=false
type BucketConfig struct {
	MaxValueSize *int64           `json:"maxValueSize,omitempty"`
	History      *int             `json:"history,omitempty"`
	TTL          *metav1.Duration `json:"ttl,omitempty"`
	MaxBytes     *int64           `json:"maxBytes,omitempty"`
	Storage      *int             `json:"storage,omitempty"`
	Replicas     *int             `json:"replicas,omitempty"`
}

// ISBSvcPhase is where an InterStepBufferService is in its life.
type ISBSvcPhase string

// The phases of an InterStepBufferService.
const (
	ISBSvcPhaseUnknown  ISBSvcPhase = ""
	ISBSvcPhasePending  ISBSvcPhase = "Pending"
	ISBSvcPhaseRunning  ISBSvcPhase = "Running"
	ISBSvcPhaseFailed   ISBSvcPhase = "Failed"
	ISBSvcPhaseDeleting ISBSvcPhase = "Deleting"
)

// InterStepBufferServiceStatus is what the operator observed.
type InterStepBufferServiceStatus struct {
	Status `json:",inline"`
	// +optional
	Phase ISBSvcPhase `json:"phase,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	Config BufferServiceConfig `json:"config,omitzero"`
	// Type is "jetstream".
	// +optional
	Type string `json:"type,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// BufferServiceConfig is how vertices reach the broker.
type BufferServiceConfig struct {
	JetStream *JetStreamConfig `json:"jetstream,omitempty"`
}

// JetStreamConfig is how vertices reach JetStream.
type JetStreamConfig struct {
	URL  string    `json:"url,omitempty"`
	Auth *NatsAuth `json:"auth,omitempty"`
	// StreamConfig is the merged BufferConfig, as YAML.
	StreamConfig string `json:"streamConfig,omitempty"`
	TLSEnabled   bool   `json:"tlsEnabled,omitempty"`
}
