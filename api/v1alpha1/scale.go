package v1alpha1

import "k8s.io/apimachinery/pkg/util/intstr"

// Scale configures autoscaling.
type Scale struct {
	// Disabled turns autoscaling off. Default: false.
	Disabled bool `json:"disabled,omitempty"`
	// Min is the fewest replicas. Default: 0.
	Min *int32 `json:"min,omitempty"`
	// Max is the most replicas, at least Min; equal to Min fixes the size. Default: 50.
	Max *int32 `json:"max,omitempty"`
	// LookbackSeconds is the time over which rates are averaged, at most 600. Default: 120.
	LookbackSeconds *uint32 `json:"lookbackSeconds,omitempty"`
	// ZeroReplicaSleepSeconds is how long a source stays at 0 before one pod looks for new messages. Default: 120.
	ZeroReplicaSleepSeconds *uint32 `json:"zeroReplicaSleepSeconds,omitempty"`
	// TargetProcessingSeconds is the time in which what is pending should be processed. Default: 20.
	TargetProcessingSeconds *uint32 `json:"targetProcessingSeconds,omitempty"`
	// TargetBufferAvailability is the free share of the buffer to aim at, in percent; not for sources. Default: 50.
	TargetBufferAvailability *uint32 `json:"targetBufferAvailability,omitempty"`
	// ReplicasPerScale is the old spelling of ReplicasPerScaleUp and ReplicasPerScaleDown, which win.
	ReplicasPerScale *uint32 `json:"replicasPerScale,omitempty"`
	// ScaleUpCooldownSeconds is the time between the last scaling and a scaling up. Default: 90.
	ScaleUpCooldownSeconds *uint32 `json:"scaleUpCooldownSeconds,omitempty"`
	// ScaleDownCooldownSeconds is the time between the last scaling and a scaling down. Default: 90.
	ScaleDownCooldownSeconds *uint32 `json:"scaleDownCooldownSeconds,omitempty"`
	// ReplicasPerScaleUp is the most replicas that one step adds. Default: 2.
	ReplicasPerScaleUp *uint32 `json:"replicasPerScaleUp,omitempty"`
	// ReplicasPerScaleDown is the most replicas that one step takes away. Default: 2.
	ReplicasPerScaleDown *uint32 `json:"replicasPerScaleDown,omitempty"`
	// Cron changes Min and Max at certain times. Sources and MonoVertices only.
	Cron *CronScheduling `json:"cron,omitempty"`
}

// CronScheduling changes the bounds of a Scale at certain times.
type CronScheduling struct {
	// Timezone of the schedules, an IANA name. Default: UTC.
	Timezone string `json:"timezone,omitempty"`
	// Schedules, at least one.
	Schedules []CronSchedule `json:"schedules,omitempty"`
}

// CronSchedule sets the bounds to Min and Max between Start and End.
type CronSchedule struct {
	// Start is a cron expression of six fields, seconds first.
	Start string `json:"start"`
	// End is a cron expression of six fields; it differs from Start in its first three only.
	End string `json:"end"`
	Min *int32 `json:"min,omitempty"`
	Max *int32 `json:"max,omitempty"`
}

// UpdateStrategyType names a way to replace pods.
type UpdateStrategyType string

// RollingUpdate replaces pods in steps; it is the only way.
const RollingUpdate UpdateStrategyType = "RollingUpdate"

// UpdateStrategy says how pods are replaced by new ones.
type UpdateStrategy struct {
	// Type is RollingUpdate. Default: RollingUpdate.
	Type UpdateStrategyType `json:"type,omitempty"`
	// RollingUpdate configures the steps.
	RollingUpdate *RollingUpdateStrategy `json:"rollingUpdate,omitempty"`
}

// RollingUpdateStrategy replaces pods from replica 0 upward.
type RollingUpdateStrategy struct {
	// MaxUnavailable is how many pods one step replaces: a number, or a share such as 25%. Default: 25%.
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`
}
