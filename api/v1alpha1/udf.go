package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// UDF is a user's function: a map, or a reduce when GroupBy is set.
type UDF struct {
	Container *Container `json:"container,omitempty"`
	// GroupBy makes it a reduce.
	GroupBy *GroupBy `json:"groupBy,omitempty"`
	// RetryStrategy for messages that the function answers with a failure. Map only.
	RetryStrategy *RetryStrategy `json:"retryStrategy,omitempty"`
	// Levada: Builtin takes the place of Container.
	Builtin *Builtin `json:"builtin,omitempty"`
}

// Builtin is a function that Levada brings along, so that it needs no container. (Levada)
type Builtin struct {
	// Name of the function, say cat or filter. Required.
	Name string `json:"name"`
	// Args in the order that the function defines.
	Args []string `json:"args,omitempty"`
	// KWArgs by name, say expression.
	KWArgs map[string]string `json:"kwargs,omitempty"`
}

// GroupBy groups messages by window, and by keys when Keyed.
type GroupBy struct {
	Window Window `json:"window,omitzero"`
	// Keyed groups by keys too. Default: false; all messages of a window are one group, in one partition.
	Keyed bool `json:"keyed,omitempty"`
	// AllowedLateness is how long after its end a window still takes messages. Default: 0s.
	AllowedLateness *metav1.Duration `json:"allowedLateness,omitempty"`
	// Storage keeps open windows over a restart. Required.
	Storage *PBQStorage `json:"storage,omitempty"`
}

// Window says which messages belong together. Exactly one field is set.
type Window struct {
	Fixed       *FixedWindow       `json:"fixed,omitempty"`
	Sliding     *SlidingWindow     `json:"sliding,omitempty"`
	Session     *SessionWindow     `json:"session,omitempty"`
	Accumulator *AccumulatorWindow `json:"accumulator,omitempty"`
}

// FixedWindow cuts event time into pieces of Length.
type FixedWindow struct {
	// Length of a window. Required, above 0.
	Length *metav1.Duration `json:"length,omitempty"`
	// Streaming lets the function answer before the window closes. Default: false.
	Streaming bool `json:"streaming,omitempty"`
}

// SlidingWindow starts a window of Length every Slide.
type SlidingWindow struct {
	// Length of a window. Required, above 0.
	Length *metav1.Duration `json:"length,omitempty"`
	// Slide is the time between the starts of two windows. Required, above 0.
	Slide *metav1.Duration `json:"slide,omitempty"`
	// Streaming lets the function answer before the window closes. Default: false.
	Streaming bool `json:"streaming,omitempty"`
}

// SessionWindow holds messages of one key with less than Timeout between them.
type SessionWindow struct {
	// Timeout of silence that closes the window. Required, above 0.
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// AccumulatorWindow is one window per key without an end; its state goes after Timeout of silence.
type AccumulatorWindow struct {
	// Timeout of silence that drops the state. Required, above 0.
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// PBQStorage keeps open windows. Exactly one field is set.
type PBQStorage struct {
	// PersistentVolumeClaim keeps windows over the loss of a pod.
	PersistentVolumeClaim *PersistenceStrategy `json:"persistentVolumeClaim,omitempty"`
	// EmptyDir keeps windows over the restart of a container.
	EmptyDir *corev1.EmptyDirVolumeSource `json:"emptyDir,omitempty"`
	// NoStore keeps windows in memory only.
	NoStore *NoStore `json:"no_store,omitempty"`
}

// NoStore keeps nothing.
type NoStore struct{}
