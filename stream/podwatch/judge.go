package podwatch

import (
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/levada-io/levada/stream"
)

// Cause is the kind of evidence that an owner has ended.
type Cause string

const (
	// ContainerEnded: the worker's container has terminated, and no other has taken its place yet.
	ContainerEnded Cause = "container-ended"
	// ContainerReplaced: the pod runs a newer container than the one that claimed.
	ContainerReplaced Cause = "container-replaced"
	// PodEnded: the pod's phase is Failed or Succeeded, so that none of its containers will ever run again.
	PodEnded Cause = "pod-ended"
	// PodGone: the pod's object was deleted, or another pod has its name.
	PodGone Cause = "pod-gone"
)

// EndedOwner is an owner that has ended, and what Kubernetes reports about it.
type EndedOwner struct {
	Owner     stream.Owner
	Namespace string
	Node      string // empty: not known
	Cause     Cause
	// Container and ContainerID name the container that ended; empty when it was the pod as a whole.
	Container   string
	ContainerID string
	// Reason is the word that Kubernetes gives, as OOMKilled, Error, Evicted or DeletionByTaintManager. Empty: not known.
	Reason string
	// ExitCode is that of the container, 137 after a SIGKILL. It means nothing while ContainerID is empty.
	ExitCode int32
	// Message is for people, and cut off at some length.
	Message string
	// FinishedAt is when the container ended, by its node's clock and in whole seconds. Zero: not known.
	FinishedAt time.Time
	// Expired is how many leases were ended.
	Expired int
}

// A finding is one reason to end leases of one owner. It is acted upon once for each owner: an owner that is alive
// after all, as in a container whose node has a wrong clock, loses its leases at most once to it.
type finding struct {
	key   string // names the finding among those of the pod
	death EndedOwner
	dead  stream.ExpireFilter
}

// past is what a watcher remembers beyond the pod's present status.
type past struct {
	// firstSeen is when the owner was first met in the store, by this process' clock.
	firstSeen time.Time
	// ran is the ID of the last container of the owner's name that was seen to run. Empty: none was.
	ran string
	// replaced is whether another one was seen to run before it.
	replaced bool
}

// judge looks for evidence in a pod's status that the owner, which is of this pod, has ended. It is pure.
//
// Whether a lease is of the container that ended or of the one that took its place is decided by time: when it was claimed
// by the store's clock, and when containers ended and started by the node's clock, which gives whole seconds, rounded
// down. What both clocks cannot tell apart is left to the lease, since a restarted worker ends the leases of its
// predecessor itself. An owner that was met in the store longer than skew before is not judged by when it claimed.
func judge(pod *corev1.Pod, owner stream.Owner, name string, was past, skew time.Duration) (finding, bool) {
	death := EndedOwner{Owner: owner, Namespace: pod.Namespace, Node: pod.Spec.NodeName}
	dead := stream.ExpireFilter{PodUID: owner.PodUID, Container: owner.Container, Incarnation: owner.Incarnation}
	if phase := pod.Status.Phase; phase == corev1.PodFailed || phase == corev1.PodSucceeded {
		death.podEnded(pod, name)
		return finding{"phase", death, dead}, true
	}
	status, ok := containerStatus(pod, name)
	if !ok {
		return finding{}, false
	}
	last := status.LastTerminationState.Terminated
	switch running := status.State.Running; {
	case status.State.Terminated != nil:
		return judgeEnded(death, dead, name, status, status.State.Terminated, was, skew), true
	case running == nil && last != nil: // waiting for its restart
		return judgeEnded(death, dead, name, status, last, was, skew), true
	case running == nil && was.ran == "": // waiting, and nothing is known of a predecessor's end
		return finding{}, false
	case running == nil:
		death.Cause, death.Container, death.ContainerID, death.Reason = ContainerEnded, name, was.ran, "Vanished"
		return finding{"end " + was.ran, death, dead}, true
	case status.RestartCount == 0 && last == nil && !was.replaced: // the first container of its name
		return finding{}, false
	case running.StartedAt.IsZero(): // nothing tells the new container's leases from the old one's
		return finding{}, false
	}
	return judgeReplaced(death, dead, name, status, was, skew), true
}

// podEnded fills in how a pod ended that is not started again.
func (d *EndedOwner) podEnded(pod *corev1.Pod, name string) {
	d.Cause, d.Reason, d.Message = PodEnded, pod.Status.Reason, pod.Status.Message
	if status, ok := containerStatus(pod, name); ok && status.State.Terminated != nil {
		d.ended(name, status.State.Terminated)
	}
	if disruption := disruptionOf(pod); disruption != nil && d.Reason == "" {
		d.Reason, d.Message = disruption.Reason, disruption.Message
	}
	if d.Reason == "" {
		d.Reason = string(pod.Status.Phase)
	}
}

// judgeEnded is about a container that has ended, and no other runs: leases that were claimed before its end are its own. Its end is known to
// the second, so a second is added.
func judgeEnded(death EndedOwner, dead stream.ExpireFilter, name string, status corev1.ContainerStatus, last *corev1.ContainerStateTerminated, was past, skew time.Duration) finding {
	death.Cause = ContainerEnded
	death.ended(name, last)
	if end := last.FinishedAt; !end.IsZero() && !was.firstSeen.Add(skew).Before(end.Time) {
		dead.ClaimedBefore = end.Add(time.Second)
	}
	return finding{"end " + idOf(last.ContainerID, status), death, dead}
}

// judgeReplaced is about a container that runs in the place of another: leases that were claimed before its start are the other's.
func judgeReplaced(death EndedOwner, dead stream.ExpireFilter, name string, status corev1.ContainerStatus, was past, skew time.Duration) finding {
	death.Cause, death.Container = ContainerReplaced, name
	start := status.State.Running.StartedAt
	dead.ClaimedBefore = start.Time
	if last := status.LastTerminationState.Terminated; last != nil {
		death.ended(name, last)
		// In the middle between the end of one and the start of the other, clocks may differ in either direction.
		if end := last.FinishedAt.Add(time.Second); !last.FinishedAt.IsZero() && end.Before(start.Time) {
			dead.ClaimedBefore = end.Add(start.Sub(end) / 2)
		}
	}
	if was.firstSeen.Add(skew).Before(start.Time) {
		dead.ClaimedBefore = time.Time{}
	}
	return finding{"start " + idOf(status.ContainerID, status), death, dead}
}

// ended fills in how a container ended.
func (d *EndedOwner) ended(name string, end *corev1.ContainerStateTerminated) {
	d.Container, d.ContainerID, d.ExitCode, d.FinishedAt = name, end.ContainerID, end.ExitCode, end.FinishedAt.Time
	if d.Reason == "" {
		d.Reason = end.Reason
	}
	if d.Message == "" {
		d.Message = end.Message
	}
}

// idOf is the container's ID, or what else tells it from the others of its name: a runtime may have forgotten it.
func idOf(id string, status corev1.ContainerStatus) string {
	if id != "" {
		return id
	}
	return "restart " + strconv.Itoa(int(status.RestartCount))
}

// containerStatus finds the status of a container, of whatever kind.
func containerStatus(pod *corev1.Pod, name string) (corev1.ContainerStatus, bool) {
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for _, s := range statuses {
			if s.Name == name {
				return s, true
			}
		}
	}
	return corev1.ContainerStatus{}, false
}

// containerOf is the name of the owner's container: what it said itself, else the only one of the pod that is no
// sidecar. False if that is unknown: then only the pod's end is a sign.
func containerOf(pod *corev1.Pod, owner stream.Owner) (string, bool) {
	switch {
	case owner.Container != "":
		return owner.Container, true
	case len(pod.Spec.Containers) == 1:
		return pod.Spec.Containers[0].Name, true
	default:
		return "", false
	}
}

// gone is the finding for an owner whose pod does not exist. last is its last known state, or nil.
func gone(owner stream.Owner, namespace string, last *corev1.Pod, message string) finding {
	death := EndedOwner{Owner: owner, Namespace: namespace, Cause: PodGone, Reason: "Deleted", Message: message}
	if last != nil {
		death.Node = last.Spec.NodeName
		if disruption := disruptionOf(last); disruption != nil {
			death.Reason, death.Message = disruption.Reason, disruption.Message
		}
		if name, ok := containerOf(last, owner); ok {
			if status, ok := containerStatus(last, name); ok && status.State.Terminated != nil {
				death.ended(name, status.State.Terminated)
			}
		}
	}
	return finding{"gone", death, stream.ExpireFilter{PodUID: owner.PodUID, Container: owner.Container, Incarnation: owner.Incarnation}}
}

// disruptionOf is the condition that says that something is about to end the pod, and why.
func disruptionOf(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			return c
		}
	}
	return nil
}
