package podwatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/levada-io/levada/stream"
)

const (
	// forgetAfter is for how long a pod that is gone, and what was judged of its owners, is remembered. Only as long as
	// an owner may be met again, which is a lease; an hour costs nothing.
	forgetAfter = time.Hour
	// maxGets bounds the pods that one pass asks the API server for, so that a store full of unknown owners does not
	// become a load. What is left is asked for by the next passes.
	maxGets = 20
)

// reconciler compares the owners in the store with the pods, and ends the leases of dead ones. What it remembers only saves
// work and bounds the harm of wrong clocks; a new one starts with nothing and comes to the same result.
type reconciler struct {
	options   Options
	store     stream.Store
	pods      func() []*corev1.Pod // all pods that are watched, trimmed
	deleted   func() []*corev1.Pod // those that were deleted since the last call, as they were last
	get       func(ctx context.Context, name string) (*corev1.Pod, error)
	now       func() time.Time
	logger    *slog.Logger
	memory    map[types.UID]*podMemory
	elsewhere map[types.UID]time.Time // pods that exist without being watched, and when they may be asked for again
}

// podMemory is what is remembered of a pod that is, or was, watched, or whose absence was confirmed.
type podMemory struct {
	last      *corev1.Pod       // as it was seen last; nil when it never was
	gone      time.Time         // when it was found to be gone; zero while it exists
	confirmed bool              // that it is gone; a label selector makes living pods disappear too
	ran       map[string]string // the ID of the container that was seen to run last, by name
	replaced  map[string]bool   // whether it was not the first
	owners    map[string]*ownerMemory
	noted     bool // that it is being deleted or disrupted
	ambiguous bool // that its owners' container is unknown was logged
}

type ownerMemory struct {
	firstSeen time.Time
	done      map[string]bool // keys of the findings that were acted upon
}

// pass does all that is to be done now. It returns how many leases it ended. After an error, or when more is true, it has
// left something undone and should be called again soon.
func (r *reconciler) pass(ctx context.Context) (expired int, more bool, err error) {
	var errs []error
	owners, err := r.owners(ctx)
	pods := r.look() // also without owners, lest what happens meanwhile is forgotten
	if err != nil {
		return 0, true, err
	}
	now := r.now()

	var absent []stream.Owner
	for _, owner := range owners {
		uid := types.UID(owner.PodUID)
		if uid == "" {
			continue // not in Kubernetes, or it does not say where: its lease is all there is
		}
		pod, here := pods[uid]
		if !here {
			absent = append(absent, owner)
			continue
		}
		n, err := r.judge(ctx, pod, owner, now)
		expired += n
		errs = append(errs, err)
	}
	// Absent ones come last: to ask for them may take long.
	n, more, err := r.absent(ctx, absent, now)
	expired += n
	errs = append(errs, err)
	r.forget(pods, owners, now)
	err = errors.Join(errs...)
	return expired, more || err != nil, err
}

// absent acts upon owners whose pods are not in the list, once their absence is confirmed. more says that some are left for the next pass.
func (r *reconciler) absent(ctx context.Context, owners []stream.Owner, now time.Time) (expired int, more bool, err error) {
	var errs []error
	gets := 0
	for _, owner := range owners {
		uid := types.UID(owner.PodUID)
		memory := r.memory[uid]
		if memory == nil || !memory.confirmed {
			if r.options.SharedStore && memory == nil || now.Before(r.elsewhere[uid]) {
				continue
			}
			if gets++; gets > maxGets {
				more = true
				continue
			}
			dead, err := r.confirm(ctx, owner)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if !dead {
				r.elsewhere[uid] = now.Add(r.options.Resync)
				continue
			}
			memory = r.remember(uid)
			memory.gone, memory.confirmed = now, true
		}
		n, err := r.act(ctx, memory, gone(owner, r.options.Namespace, memory.last, ""), now)
		expired += n
		errs = append(errs, err)
	}
	return expired, more, errors.Join(errs...)
}

func (r *reconciler) owners(ctx context.Context) ([]stream.Owner, error) {
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	owners, err := r.store.Owners(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the owners of leases from the store: %w", err)
	}
	return owners, nil
}

// look takes over the present state of the pods.
func (r *reconciler) look() map[types.UID]*corev1.Pod {
	// Those first: a pod that is in the list again was not deleted after all.
	for _, pod := range r.deleted() {
		r.remember(pod.UID).last = pod
	}
	list := r.pods()
	pods := make(map[types.UID]*corev1.Pod, len(list))
	for _, pod := range list {
		pods[pod.UID] = pod
		memory := r.remember(pod.UID)
		memory.last = pod
		memory.gone, memory.confirmed = time.Time{}, false
		delete(r.elsewhere, pod.UID)
		memory.noteContainers(pod)
		r.noteEnding(pod, memory)
	}
	for uid, memory := range r.memory {
		if _, here := pods[uid]; here || !memory.gone.IsZero() {
			continue
		}
		memory.gone = r.now()
		// Without a selector only a deletion makes a pod disappear from a complete list.
		memory.confirmed = r.options.Selector == "" || memory.last.DeletionTimestamp != nil
	}
	return pods
}

// noteContainers notes which containers run, and which of them took another's place.
func (m *podMemory) noteContainers(pod *corev1.Pod) {
	for _, s := range slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses) {
		if s.State.Running == nil || s.ContainerID == "" || s.ContainerID == m.ran[s.Name] {
			continue
		}
		m.replaced[s.Name] = m.ran[s.Name] != ""
		m.ran[s.Name] = s.ContainerID
	}
}

// noteEnding logs once that a pod is about to end. It drains and releases its leases by itself: to take them before would only break what it is
// committing.
func (r *reconciler) noteEnding(pod *corev1.Pod, memory *podMemory) {
	disruption := disruptionOf(pod)
	if memory.noted || pod.DeletionTimestamp == nil && disruption == nil {
		return
	}
	memory.noted = true
	reason := "deleted"
	if disruption != nil {
		reason = disruption.Reason
	}
	r.logger.Info("a pod is about to end", "pod", pod.Name, "reason", reason)
}

func (r *reconciler) remember(uid types.UID) *podMemory {
	memory := r.memory[uid]
	if memory == nil {
		memory = &podMemory{ran: map[string]string{}, replaced: map[string]bool{}, owners: map[string]*ownerMemory{}}
		r.memory[uid] = memory
	}
	return memory
}

func (m *podMemory) owner(incarnation string, now time.Time) *ownerMemory {
	o := m.owners[incarnation]
	if o == nil {
		o = &ownerMemory{firstSeen: now, done: map[string]bool{}}
		m.owners[incarnation] = o
	}
	return o
}

// judge judges an owner by its pod's status, and acts.
func (r *reconciler) judge(ctx context.Context, pod *corev1.Pod, owner stream.Owner, now time.Time) (int, error) {
	memory := r.memory[pod.UID]
	seen := memory.owner(owner.Incarnation, now)
	name, known := containerOf(pod, owner)
	if !known && !memory.ambiguous {
		memory.ambiguous = true
		r.logger.Warn("a worker's container is not known, so its restarts are not seen before its lease ends; set CONTAINER_NAME in the worker's environment",
			"pod", pod.Name, "owner", owner.String())
	}
	found, dead := judge(pod, owner, name, past{seen.firstSeen, memory.ran[name], memory.replaced[name]}, r.options.ClockSkew)
	if !dead {
		return 0, nil
	}
	return r.act(ctx, memory, found, now)
}

// act ends the leases that a finding is about, unless that was done.
func (r *reconciler) act(ctx context.Context, memory *podMemory, found finding, now time.Time) (int, error) {
	seen := memory.owner(found.death.Owner.Incarnation, now)
	if seen.done[found.key] {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	n, err := r.store.Expire(ctx, found.dead)
	if err != nil {
		return 0, fmt.Errorf("end the leases of %v (%s): %w", found.death.Owner, found.death.Cause, err)
	}
	seen.done[found.key] = true
	if n == 0 {
		return 0, nil // released, taken over, ended by another watcher, or claimed later
	}
	found.death.Expired = n
	d := found.death
	r.logger.Info("a worker died: its leases are ended", "owner", d.Owner.String(), "pod_uid", d.Owner.PodUID, "node", d.Node, "cause", string(d.Cause),
		"container", d.Container, "reason", d.Reason, "exit_code", d.ExitCode, "message", d.Message, "finished_at", d.FinishedAt, "leases", n)
	if r.options.OnEnded != nil {
		r.options.OnEnded(d)
	}
	return n, nil
}

// confirm asks whether a pod that is not among the watched ones is gone.
func (r *reconciler) confirm(ctx context.Context, owner stream.Owner) (bool, error) {
	if owner.Pod == "" {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	pod, err := r.get(ctx, owner.Pod)
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("look whether pod %s/%s exists: %w", r.options.Namespace, owner.Pod, err)
	default:
		return string(pod.UID) != owner.PodUID, nil
	}
}

// forget drops entries that are not used any more.
func (r *reconciler) forget(pods map[types.UID]*corev1.Pod, owners []stream.Owner, now time.Time) {
	met := make(map[types.UID]bool, len(owners))
	for _, owner := range owners {
		met[types.UID(owner.PodUID)] = true
	}
	for uid, memory := range r.memory {
		if _, here := pods[uid]; !here && !met[uid] && now.Sub(memory.gone) > forgetAfter {
			delete(r.memory, uid)
		}
	}
	for uid := range r.elsewhere {
		if !met[uid] {
			delete(r.elsewhere, uid)
		}
	}
}

// differs reports whether two states of a pod may be judged differently.
func differs(a, b *corev1.Pod) bool {
	return a.UID != b.UID || a.Status.Phase != b.Status.Phase || (a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) ||
		cmp.Or(disruptionOf(a), &corev1.PodCondition{}).Reason != cmp.Or(disruptionOf(b), &corev1.PodCondition{}).Reason ||
		statusesDiffer(a.Status.ContainerStatuses, b.Status.ContainerStatuses) ||
		statusesDiffer(a.Status.InitContainerStatuses, b.Status.InitContainerStatuses)
}

func statusesDiffer(a, b []corev1.ContainerStatus) bool {
	if len(a) != len(b) {
		return true
	}
	for i := range a {
		if a[i].Name != b[i].Name || a[i].ContainerID != b[i].ContainerID || a[i].RestartCount != b[i].RestartCount ||
			(a[i].State.Running == nil) != (b[i].State.Running == nil) || (a[i].State.Terminated == nil) != (b[i].State.Terminated == nil) ||
			(a[i].LastTerminationState.Terminated == nil) != (b[i].LastTerminationState.Terminated == nil) {
			return true
		}
	}
	return false
}
