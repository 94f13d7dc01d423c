package podwatch

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/levada-io/levada/stream"
)

var epoch = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// at is a moment, in seconds after the epoch of the tests.
func at(seconds float64) time.Time { return epoch.Add(time.Duration(seconds * float64(time.Second))) }

// second is a moment as the API server has it: in whole seconds.
func second(t time.Time) metav1.Time { return metav1.NewTime(t.Truncate(time.Second)) }

func worker(name string) stream.Owner {
	return stream.Owner{Pod: name, PodUID: "uid-" + name, Container: "worker", Incarnation: "incarnation-of-" + name}
}

func newPod(name string, statuses ...corev1.ContainerStatus) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "orders", UID: types.UID("uid-" + name)}}
	pod.Spec.NodeName = "node-1"
	pod.Spec.Containers = []corev1.Container{{Name: "worker"}}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.ContainerStatuses = statuses
	return pod
}

func running(id string, restarts int32, start time.Time) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: "worker", ContainerID: id, RestartCount: restarts,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: second(start)}}}
}

func oom(id string, end time.Time) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{ContainerID: id, Reason: "OOMKilled", ExitCode: 137, FinishedAt: second(end)}
}

func terminated(end *corev1.ContainerStateTerminated, restarts int32) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: "worker", ContainerID: end.ContainerID, RestartCount: restarts, State: corev1.ContainerState{Terminated: end}}
}

func waiting(reason string, restarts int32) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: "worker", RestartCount: restarts, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}
}

func after(status corev1.ContainerStatus, end *corev1.ContainerStateTerminated) corev1.ContainerStatus {
	status.LastTerminationState.Terminated = end
	return status
}

func TestJudge(t *testing.T) {
	justMet := past{firstSeen: at(3600)} // as after a start of the watcher: only clocks can tell
	never := time.Time{}
	type want struct {
		Key, Container, ID, Reason string
		Cause                      Cause
		Code                       int32
		Before                     time.Time
	}
	tests := []struct {
		name string
		pod  *corev1.Pod
		was  past
		want *want
	}{
		{"it runs", newPod("a", running("k1", 0, at(0))), justMet, nil},
		{"it runs, and is about to end", disrupted(deleting(newPod("a", running("k1", 0, at(0))))), justMet, nil},
		{"no status yet", newPod("a"), justMet, nil},
		{"it never ran", newPod("a", waiting("ContainerCreating", 0)), justMet, nil},
		{"the status has another container only", newPod("a", corev1.ContainerStatus{Name: "proxy", State: corev1.ContainerState{Terminated: oom("p", at(9))}}), justMet, nil},

		{"killed", newPod("a", terminated(oom("k1", at(60)), 0)), justMet,
			&want{"end k1", "worker", "k1", "OOMKilled", ContainerEnded, 137, at(61)}},
		{"ended well", newPod("a", terminated(&corev1.ContainerStateTerminated{ContainerID: "k1", Reason: "Completed", FinishedAt: second(at(60))}, 0)), justMet,
			&want{"end k1", "worker", "k1", "Completed", ContainerEnded, 0, at(61)}},
		{"killed again", newPod("a", after(terminated(oom("k2", at(90)), 1), oom("k1", at(60)))), justMet,
			&want{"end k2", "worker", "k2", "OOMKilled", ContainerEnded, 137, at(91)}},
		{"killed, nobody knows when", newPod("a", terminated(&corev1.ContainerStateTerminated{Reason: "ContainerStatusUnknown", ExitCode: 137}, 2)), justMet,
			&want{"end restart 2", "worker", "", "ContainerStatusUnknown", ContainerEnded, 137, never}},
		{"waits for its restart", newPod("a", after(waiting("CrashLoopBackOff", 3), oom("k3", at(60)))), justMet,
			&want{"end k3", "worker", "k3", "OOMKilled", ContainerEnded, 137, at(61)}},
		{"waits, its predecessor is forgotten", newPod("a", waiting("ContainerCreating", 1)), past{firstSeen: at(3600), ran: "k1"},
			&want{"end k1", "worker", "k1", "Vanished", ContainerEnded, 0, never}},
		{"waits, its predecessor was never known", newPod("a", waiting("ContainerCreating", 1)), justMet, nil},

		{"restarted after a while", newPod("a", after(running("k2", 1, at(71)), oom("k1", at(60)))), justMet,
			&want{"start k2", "worker", "k1", "OOMKilled", ContainerReplaced, 137, at(66)}},
		{"restarted in the same second", newPod("a", after(running("k2", 1, at(60)), oom("k1", at(60)))), justMet,
			&want{"start k2", "worker", "k1", "OOMKilled", ContainerReplaced, 137, at(60)}},
		{"restarted in the next second", newPod("a", after(running("k2", 1, at(61)), oom("k1", at(60)))), justMet,
			&want{"start k2", "worker", "k1", "OOMKilled", ContainerReplaced, 137, at(61)}},
		{"restarted, its predecessor is forgotten", newPod("a", running("k2", 1, at(70))), justMet,
			&want{"start k2", "worker", "", "", ContainerReplaced, 0, at(70)}},
		{"another one runs, though nothing was restarted", newPod("a", running("k2", 0, at(70))), past{firstSeen: at(3600), ran: "k2", replaced: true},
			&want{"start k2", "worker", "", "", ContainerReplaced, 0, at(70)}},
		{"restarted, nobody knows when", newPod("a", after(corev1.ContainerStatus{Name: "worker", ContainerID: "k2", RestartCount: 1,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}, oom("k1", at(60)))), justMet, nil},

		{"met long before it was killed", newPod("a", terminated(oom("k1", at(60)), 0)), past{firstSeen: at(49)},
			&want{"end k1", "worker", "k1", "OOMKilled", ContainerEnded, 137, never}},
		{"met shortly before it was killed", newPod("a", terminated(oom("k1", at(60)), 0)), past{firstSeen: at(51)},
			&want{"end k1", "worker", "k1", "OOMKilled", ContainerEnded, 137, at(61)}},
		{"met long before its restart", newPod("a", after(running("k2", 1, at(60)), oom("k1", at(60)))), past{firstSeen: at(49)},
			&want{"start k2", "worker", "k1", "OOMKilled", ContainerReplaced, 137, never}},

		{"the pod failed", phase(newPod("a", terminated(oom("k1", at(60)), 0)), corev1.PodFailed, ""), justMet,
			&want{"phase", "worker", "k1", "OOMKilled", PodEnded, 137, never}},
		{"the pod succeeded", phase(newPod("a"), corev1.PodSucceeded, ""), justMet, &want{"phase", "", "", "Succeeded", PodEnded, 0, never}},
		{"the pod was evicted", phase(newPod("a", terminated(oom("k1", at(60)), 0)), corev1.PodFailed, "Evicted"), justMet,
			&want{"phase", "worker", "k1", "Evicted", PodEnded, 137, never}},
		{"the pod was preempted", disrupted(phase(newPod("a"), corev1.PodFailed, "")), justMet, &want{"phase", "", "", "PreemptionByScheduler", PodEnded, 0, never}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			owner := worker("a")
			got, dead := judge(test.pod, owner, "worker", test.was, 10*time.Second)
			if dead != (test.want != nil) {
				t.Fatalf("dead: %v (%+v), want %v", dead, got, test.want != nil)
			}
			if !dead {
				return
			}
			d := got.death
			if diff := cmp.Diff(*test.want, want{got.key, d.Container, d.ContainerID, d.Reason, d.Cause, d.ExitCode, got.dead.ClaimedBefore}); diff != "" {
				t.Errorf("finding (-want +got):\n%s", diff)
			}
			limits := stream.ExpireFilter{PodUID: owner.PodUID, Container: "worker", Incarnation: owner.Incarnation, ClaimedBefore: got.dead.ClaimedBefore}
			if got.dead != limits {
				t.Errorf("it ends %+v, want no more than %+v", got.dead, limits)
			}
			// Trimming must not change a judgement.
			if again, _ := judge(trim(test.pod), owner, "worker", test.was, 10*time.Second); again != got {
				t.Errorf("of the trimmed pod: %+v, want %+v", again, got)
			}
		})
	}
}

func deleting(pod *corev1.Pod) *corev1.Pod {
	now := second(at(50))
	pod.DeletionTimestamp = &now
	return pod
}

func disrupted(pod *corev1.Pod) *corev1.Pod {
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "PreemptionByScheduler"})
	return pod
}

func phase(pod *corev1.Pod, phase corev1.PodPhase, reason string) *corev1.Pod {
	pod.Status.Phase, pod.Status.Reason = phase, reason
	return pod
}

func TestContainerOf(t *testing.T) {
	alone, several := newPod("a"), newPod("a")
	several.Spec.Containers = append(several.Spec.Containers, corev1.Container{Name: "proxy"})
	silent := worker("a")
	silent.Container = ""
	for _, test := range []struct {
		name  string
		pod   *corev1.Pod
		owner stream.Owner
		want  string
	}{
		{"it said so", several, worker("a"), "worker"},
		{"the only one", alone, silent, "worker"},
		{"one of several", several, silent, ""},
	} {
		if got, known := containerOf(test.pod, test.owner); got != test.want || known != (test.want != "") {
			t.Errorf("%s: %q, %v; want %q", test.name, got, known, test.want)
		}
	}
}

func TestTrim(t *testing.T) {
	pod := disrupted(newPod("a", after(running("k2", 1, at(71)), oom("k1", at(60)))))
	pod.Labels = map[string]string{"app": "orders"}
	pod.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "data"}}
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "SECRET", Value: "x"}}
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady})
	long := make([]byte, 4096)
	for i := range long {
		long[i] = 'm'
	}
	pod.Status.ContainerStatuses[0].LastTerminationState.Terminated.Message = string(long)
	before := pod.DeepCopy()
	kept := trim(pod)
	if diff := cmp.Diff(before, pod); diff != "" {
		t.Errorf("the pod that was given changed:\n%s", diff)
	}
	if kept.Labels != nil || kept.ManagedFields != nil || kept.Spec.Volumes != nil || kept.Spec.Containers[0].Env != nil || len(kept.Status.Conditions) != 1 {
		t.Errorf("more than necessary is kept: %+v", kept)
	}
	if got := len(kept.Status.ContainerStatuses[0].LastTerminationState.Terminated.Message); got != maxMessage+3 {
		t.Errorf("%d bytes of the message are kept, want %d and dots", got, maxMessage)
	}
	if differs(pod, kept) {
		t.Error("the trimmed pod counts as changed")
	}
}
