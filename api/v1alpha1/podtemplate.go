package v1alpha1

import corev1 "k8s.io/api/core/v1"

// Container is a user's container, which speaks the function contract.
//
// It is enough to give an image; or, which is Levada's addition, a command without an image: a program that `levada run`
// starts beside itself. An annotation (AnnotationFunction) may also name the program, and then nothing is needed here.
type Container struct {
	Image           string                      `json:"image,omitempty"`
	Command         []string                    `json:"command,omitempty"`
	Args            []string                    `json:"args,omitempty"`
	Env             []corev1.EnvVar             `json:"env,omitempty"`
	EnvFrom         []corev1.EnvFromSource      `json:"envFrom,omitempty"`
	VolumeMounts    []corev1.VolumeMount        `json:"volumeMounts,omitempty"`
	Resources       corev1.ResourceRequirements `json:"resources,omitzero"`
	SecurityContext *corev1.SecurityContext     `json:"securityContext,omitempty"`
	ImagePullPolicy *corev1.PullPolicy          `json:"imagePullPolicy,omitempty"`
	ReadinessProbe  *Probe                      `json:"readinessProbe,omitempty"`
	LivenessProbe   *Probe                      `json:"livenessProbe,omitempty"`
	Ports           []corev1.ContainerPort      `json:"ports,omitempty"`
}

// ContainerTemplate changes a container that the platform makes.
type ContainerTemplate struct {
	Resources       corev1.ResourceRequirements `json:"resources,omitzero"`
	ImagePullPolicy corev1.PullPolicy           `json:"imagePullPolicy,omitempty"`
	SecurityContext *corev1.SecurityContext     `json:"securityContext,omitempty"`
	Env             []corev1.EnvVar             `json:"env,omitempty"`
	EnvFrom         []corev1.EnvFromSource      `json:"envFrom,omitempty"`
	ReadinessProbe  *Probe                      `json:"readinessProbe,omitempty"`
	LivenessProbe   *Probe                      `json:"livenessProbe,omitempty"`
}

// Probe changes the numbers of a probe; what it asks is fixed.
type Probe struct {
	InitialDelaySeconds *int32 `json:"initialDelaySeconds,omitempty"`
	TimeoutSeconds      *int32 `json:"timeoutSeconds,omitempty"`
	PeriodSeconds       *int32 `json:"periodSeconds,omitempty"`
	SuccessThreshold    *int32 `json:"successThreshold,omitempty"`
	FailureThreshold    *int32 `json:"failureThreshold,omitempty"`
}

// Metadata is added to the pods.
type Metadata struct {
	Annotations map[string]string `json:"annotations,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// AbstractPodTemplate changes the pods that the operator makes. It means nothing on a laptop.
type AbstractPodTemplate struct {
	Metadata                     *Metadata                     `json:"metadata,omitempty"`
	NodeSelector                 map[string]string             `json:"nodeSelector,omitempty"`
	Tolerations                  []corev1.Toleration           `json:"tolerations,omitempty"`
	SecurityContext              *corev1.PodSecurityContext    `json:"securityContext,omitempty"`
	ImagePullSecrets             []corev1.LocalObjectReference `json:"imagePullSecrets,omitempty"`
	PriorityClassName            string                        `json:"priorityClassName,omitempty"`
	Priority                     *int32                        `json:"priority,omitempty"`
	Affinity                     *corev1.Affinity              `json:"affinity,omitempty"`
	ServiceAccountName           string                        `json:"serviceAccountName,omitempty"`
	RuntimeClassName             *string                       `json:"runtimeClassName,omitempty"`
	AutomountServiceAccountToken *bool                         `json:"automountServiceAccountToken,omitempty"`
	DNSPolicy                    corev1.DNSPolicy              `json:"dnsPolicy,omitempty"`
	DNSConfig                    *corev1.PodDNSConfig          `json:"dnsConfig,omitempty"`
	ResourceClaims               []corev1.PodResourceClaim     `json:"resourceClaims,omitempty"`
}

// Templates change the pods that the operator makes for a Pipeline.
type Templates struct {
	Daemon            *DaemonTemplate            `json:"daemon,omitempty"`
	Job               *JobTemplate               `json:"job,omitempty"`
	SideInputsManager *SideInputsManagerTemplate `json:"sideInputsManager,omitempty"`
	// Vertex changes the pods of every vertex; what a vertex says itself wins.
	Vertex *VertexTemplate `json:"vertex,omitempty"`
}

// DaemonTemplate changes the pod of the daemon.
type DaemonTemplate struct {
	AbstractPodTemplate   `json:",inline"`
	Replicas              *int32             `json:"replicas,omitempty"`
	ContainerTemplate     *ContainerTemplate `json:"containerTemplate,omitempty"`
	InitContainerTemplate *ContainerTemplate `json:"initContainerTemplate,omitempty"`
}

// JobTemplate changes the pods of the jobs that make and delete buffers.
type JobTemplate struct {
	AbstractPodTemplate `json:",inline"`
	ContainerTemplate   *ContainerTemplate `json:"containerTemplate,omitempty"`
	// TTLSecondsAfterFinished is when a finished job is deleted. Default: 30.
	TTLSecondsAfterFinished *int32 `json:"ttlSecondsAfterFinished,omitempty"`
	// BackoffLimit is how often a job is tried. Default: 20.
	BackoffLimit *int32 `json:"backoffLimit,omitempty"`
}

// SideInputsManagerTemplate changes the pods that fetch side inputs.
type SideInputsManagerTemplate struct {
	AbstractPodTemplate   `json:",inline"`
	ContainerTemplate     *ContainerTemplate `json:"containerTemplate,omitempty"`
	InitContainerTemplate *ContainerTemplate `json:"initContainerTemplate,omitempty"`
}

// VertexTemplate changes the pods of vertices.
type VertexTemplate struct {
	AbstractPodTemplate   `json:",inline"`
	ContainerTemplate     *ContainerTemplate `json:"containerTemplate,omitempty"`
	InitContainerTemplate *ContainerTemplate `json:"initContainerTemplate,omitempty"`
}
