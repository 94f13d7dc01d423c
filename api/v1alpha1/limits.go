package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PipelineLimits are the defaults of every vertex's limits.
type PipelineLimits struct {
	// ReadBatchSize is how many messages a read asks for, at least 1. Default: 500.
	ReadBatchSize *uint64 `json:"readBatchSize,omitempty"`
	// BufferMaxLength is how many messages a buffer is meant to hold, per partition. Default: 30000.
	BufferMaxLength *uint64 `json:"bufferMaxLength,omitempty"`
	// BufferUsageLimit is the share of BufferMaxLength, in percent, above which writers stop. Default: 80.
	BufferUsageLimit *uint32 `json:"bufferUsageLimit,omitempty"`
	// ReadTimeout is how long a read waits to fill a batch. Default: 1s.
	ReadTimeout *metav1.Duration `json:"readTimeout,omitempty"`
	// RateLimit caps the messages per second of each vertex. Default: none.
	RateLimit *RateLimit `json:"rateLimit,omitempty"`
	// Concurrency is the most function calls in flight, at least 1. Default: ReadBatchSize; 1 in an ordered vertex.
	Concurrency *uint64 `json:"concurrency,omitempty"`
}

// VertexLimits override PipelineLimits key by key; what is absent comes from there (see EffectiveLimits).
type VertexLimits struct {
	// ReadBatchSize is how many messages a read asks for, at least 1.
	ReadBatchSize *uint64 `json:"readBatchSize,omitempty"`
	// ReadTimeout is how long a read waits to fill a batch.
	ReadTimeout *metav1.Duration `json:"readTimeout,omitempty"`
	// BufferMaxLength is how many messages the buffers of this vertex are meant to hold, per partition.
	BufferMaxLength *uint64 `json:"bufferMaxLength,omitempty"`
	// BufferUsageLimit is the share of BufferMaxLength, in percent, above which writers stop.
	BufferUsageLimit *uint32 `json:"bufferUsageLimit,omitempty"`
	// RateLimit caps the messages per second of this vertex.
	RateLimit *RateLimit `json:"rateLimit,omitempty"`
	// Concurrency is the most function calls in flight, at least 1.
	Concurrency *uint64 `json:"concurrency,omitempty"`
}

// MonoVertexLimits are the limits of a MonoVertex.
type MonoVertexLimits struct {
	// ReadBatchSize is how many messages a read asks for, at least 1. Default: 500.
	ReadBatchSize *uint64 `json:"readBatchSize,omitempty"`
	// ReadTimeout is how long a read waits to fill a batch. Default: 1s.
	ReadTimeout *metav1.Duration `json:"readTimeout,omitempty"`
	// RateLimit caps the messages per second. Default: none.
	RateLimit *RateLimit `json:"rateLimit,omitempty"`
	// Concurrency is the most function calls in flight, at least 1. Default: ReadBatchSize.
	Concurrency *uint64 `json:"concurrency,omitempty"`
}

// RateLimit caps the messages per second of all pods of a vertex together. The cap starts at Min and grows to Max.
type RateLimit struct {
	// Max is the cap at the end, in messages per second. Required, unless the pipeline sets it.
	Max *uint64 `json:"max,omitempty"`
	// Min is the cap at the start, at most Max. Default: 1.
	Min *uint64 `json:"min,omitempty"`
	// RampUpDuration is how long the cap grows from Min to Max. Default: 1s.
	RampUpDuration *metav1.Duration `json:"rampUpDuration,omitempty"`
	// Store is where the pods of Numaflow agree on the cap. Levada agrees on it through the buffer service, whatever is here.
	Store *RateLimiterStore `json:"store,omitempty"`
	// Modes say how the cap moves. Default: relaxed.
	Modes *RateLimiterModes `json:"modes,omitempty"`
	// ResumedRampUp starts a restarted pod where it was, if that is not longer ago than TTL. Default: false.
	ResumedRampUp *bool `json:"resumedRampUp,omitempty"`
	// TTL is how long the cap of a pod that is gone is remembered. Default: 180s.
	TTL *metav1.Duration `json:"ttl,omitempty"`
}

// RateLimiterStore is where pods agree on a cap. At most one field is set.
type RateLimiterStore struct {
	RedisStore    *RedisStore    `json:"redisStore,omitempty"`
	InMemoryStore *InMemoryStore `json:"inMemoryStore,omitempty"`
}

// InMemoryStore makes each pod count for itself.
type InMemoryStore struct{}

// RedisMode is how Redis is reached.
type RedisMode string

// How Redis is reached.
const (
	RedisModeSingle   RedisMode = "single"
	RedisModeSentinel RedisMode = "sentinel"
)

// RedisStore makes the pods agree in Redis.
type RedisStore struct {
	// Mode is single or sentinel. Default: single.
	Mode RedisMode `json:"mode,omitempty"`
	// URL in mode single, redis://host:port.
	URL string `json:"url,omitempty"`
	// Sentinel in mode sentinel.
	Sentinel *RedisSentinel `json:"sentinel,omitempty"`
	// DB is the number of the database. Default: 0.
	DB *int32 `json:"db,omitempty"`
}

// RedisSentinel finds the Redis that is the master.
type RedisSentinel struct {
	MasterName   string     `json:"masterName"`
	Endpoints    []string   `json:"endpoints,omitempty"`
	SentinelAuth *RedisAuth `json:"sentinelAuth,omitempty"`
	RedisAuth    *RedisAuth `json:"redisAuth,omitempty"`
	SentinelTLS  *TLS       `json:"sentinelTLS,omitempty"`
	RedisTLS     *TLS       `json:"redisTLS,omitempty"`
}

// RedisAuth is a user and a password in secrets.
type RedisAuth struct {
	Username *corev1.SecretKeySelector `json:"username,omitempty"`
	Password *corev1.SecretKeySelector `json:"password,omitempty"`
}

// RateLimiterModes say how the cap moves. At most one field is set.
type RateLimiterModes struct {
	// Relaxed grows whenever messages are asked for.
	Relaxed *RelaxedMode `json:"relaxed,omitempty"`
	// Scheduled grows with time.
	Scheduled *ScheduledMode `json:"scheduled,omitempty"`
	// OnlyIfUsed grows when enough of the cap was used.
	OnlyIfUsed *OnlyIfUsedMode `json:"onlyIfUsed,omitempty"`
	// GoBackN also shrinks when too little of it was used.
	GoBackN *GoBackNMode `json:"goBackN,omitempty"`
}

// RelaxedMode has no settings.
type RelaxedMode struct{}

// ScheduledMode has no settings.
type ScheduledMode struct{}

// OnlyIfUsedMode grows when enough of the cap was used.
type OnlyIfUsedMode struct {
	// ThresholdPercentage of the cap that must have been used. Default: 50.
	ThresholdPercentage *uint32 `json:"thresholdPercentage,omitempty"`
}

// GoBackNMode shrinks when too little of the cap was used.
type GoBackNMode struct {
	// CoolDownPeriod is how long the cap rests after it shrank. Default: 5s.
	CoolDownPeriod *metav1.Duration `json:"coolDownPeriod,omitempty"`
	// RampDownPercentage is how fast it shrinks, as a share of its growth. Default: 50.
	RampDownPercentage *uint32 `json:"rampDownPercentage,omitempty"`
	// ThresholdPercentage of the cap that must have been used. Default: 50.
	ThresholdPercentage *uint32 `json:"thresholdPercentage,omitempty"`
}
