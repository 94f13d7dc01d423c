package v1alpha1

import corev1 "k8s.io/api/core/v1"

// SideInput is a value that a user's container makes on a schedule, and that the pods of vertices read from a file.
type SideInput struct {
	// Name is unique in the pipeline.
	Name      string     `json:"name"`
	Container *Container `json:"container,omitempty"`
	// Volumes can be mounted by Container.
	Volumes []corev1.Volume   `json:"volumes,omitempty"`
	Trigger *SideInputTrigger `json:"trigger,omitempty"`
}

// SideInputTrigger says when the value is made. It is also made once at the start.
type SideInputTrigger struct {
	// Schedule is a cron expression of six or seven fields, seconds first, or @hourly, @daily, @weekly, @monthly, @yearly.
	Schedule string `json:"schedule,omitempty"`
	// Timezone of the schedule, an IANA name. Default: UTC.
	Timezone *string `json:"timezone,omitempty"`
}
