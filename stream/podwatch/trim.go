package podwatch

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxMessage is how many bytes of a message are kept; a container's own may have 4 KiB.
const maxMessage = 256

// trim copies what is judged by, so that a watcher of thousands of pods holds hundreds of bytes of each, and not the
// kilobytes of volumes, variables and managed fields that most of a pod is made of.
func trim(pod *corev1.Pod) *corev1.Pod {
	kept := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion, DeletionTimestamp: pod.DeletionTimestamp,
	}}
	kept.Spec.NodeName = pod.Spec.NodeName
	for _, c := range pod.Spec.Containers {
		kept.Spec.Containers = append(kept.Spec.Containers, corev1.Container{Name: c.Name})
	}
	kept.Status.Phase, kept.Status.Reason, kept.Status.Message = pod.Status.Phase, pod.Status.Reason, cut(pod.Status.Message)
	if c := disruptionOf(pod); c != nil {
		kept.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: cut(c.Message)}}
	}
	kept.Status.ContainerStatuses = trimStatuses(pod.Status.ContainerStatuses)
	kept.Status.InitContainerStatuses = trimStatuses(pod.Status.InitContainerStatuses)
	return kept
}

func trimStatuses(statuses []corev1.ContainerStatus) []corev1.ContainerStatus {
	if len(statuses) == 0 {
		return nil
	}
	kept := make([]corev1.ContainerStatus, len(statuses))
	for i, s := range statuses {
		kept[i] = corev1.ContainerStatus{Name: s.Name, ContainerID: s.ContainerID, RestartCount: s.RestartCount,
			State: trimState(s.State), LastTerminationState: trimState(s.LastTerminationState)}
	}
	return kept
}

func trimState(s corev1.ContainerState) corev1.ContainerState {
	switch {
	case s.Terminated != nil:
		end := *s.Terminated
		end.Message = cut(end.Message)
		return corev1.ContainerState{Terminated: &end}
	case s.Running != nil:
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: s.Running.StartedAt}}
	default:
		return corev1.ContainerState{} // waiting, for whatever
	}
}

// cut shortens a text to maxMessage bytes, and copies it so that the long one can be freed.
func cut(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage], "") + "..."
}
