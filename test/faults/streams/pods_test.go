//go:build linux

package streams

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/levada-io/levada/internal/kubeclient/kubeapi"
)

// pods plays the kubelet for processes that are killed: a real API server holds their pods, and a watcher looks at it.
type pods struct {
	t      *testing.T
	server *kubeapi.Server
	made   int
}

const podNamespace = "streams"

func startPods(t *testing.T) *pods {
	t.Helper()
	return &pods{t: t, server: kubeapi.Start(t, podNamespace)}
}

func (p *pods) access() *kubeAccess {
	c := p.server.Config("watcher", "system:masters")
	return &kubeAccess{Host: c.Host, CA: c.CAFile, Cert: c.CertFile, Key: c.KeyFile, Namespace: podNamespace}
}

// create makes the pod of a worker, and gives it to the process.
func (p *pods) create(w *process) {
	p.t.Helper()
	p.made++
	name := fmt.Sprintf("worker-%d", p.made)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: podNamespace}, Spec: corev1.PodSpec{
		NodeName: "node", Containers: []corev1.Container{{Name: "worker", Image: "worker:1"}}}}
	made, err := p.server.Admin.CoreV1().Pods(podNamespace).Create(p.t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	w.role.Pod, w.role.PodUID, w.containers = name, string(made.UID), 0
	p.runs(w, nil)
}

// runs says that the worker's container runs, the next one of its pod if there was one before.
func (p *pods) runs(w *process, before *corev1.ContainerStateTerminated) {
	p.t.Helper()
	w.containers++
	status := corev1.ContainerStatus{Name: "worker", Image: "worker:1", ContainerID: fmt.Sprintf("containerd://%s-%d", w.role.Pod, w.containers), RestartCount: int32(w.containers - 1),
		Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}}
	if before != nil {
		status.LastTerminationState.Terminated = before
	}
	p.update(w, corev1.PodRunning, status)
}

// died says that the worker's container was ended.
func (p *pods) died(w *process) *corev1.ContainerStateTerminated {
	p.t.Helper()
	id := fmt.Sprintf("containerd://%s-%d", w.role.Pod, w.containers)
	end := &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled", FinishedAt: metav1.Now(), ContainerID: id}
	p.update(w, corev1.PodRunning, corev1.ContainerStatus{Name: "worker", Image: "worker:1", ContainerID: id, RestartCount: int32(w.containers - 1), State: corev1.ContainerState{Terminated: end}})
	return end
}

func (p *pods) update(w *process, phase corev1.PodPhase, status corev1.ContainerStatus) {
	p.t.Helper()
	api := p.server.Admin.CoreV1().Pods(podNamespace)
	pod, err := api.Get(p.t.Context(), w.role.Pod, metav1.GetOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	pod.Status.Phase, pod.Status.ContainerStatuses = phase, []corev1.ContainerStatus{status}
	if _, err := api.UpdateStatus(p.t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		p.t.Fatal(err)
	}
}

// remove deletes the worker's pod at once, as an eviction or a lost node does.
func (p *pods) remove(w *process) {
	p.t.Helper()
	now := int64(0)
	if err := p.server.Admin.CoreV1().Pods(podNamespace).Delete(p.t.Context(), w.role.Pod, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		p.t.Fatal(err)
	}
}

// replace ends a worker's process in one of the ways that Kubernetes knows, after the signal has ended it, and starts what follows it.
func (p *pods) replace(w *process, inPlace bool) {
	p.t.Helper()
	if inPlace {
		end := p.died(w)
		time.Sleep(50 * time.Millisecond) // the back-off of a container that crashes
		p.runs(w, end)
	} else {
		p.remove(w)
		p.create(w)
	}
	w.start()
}
