// Package podwatch tells a job store of workers that Kubernetes knows to be dead, so that their jobs are taken over within a second or two
// instead of when their leases end. Nothing depends on it: a death that it misses costs the rest of a lease, and one that it
// only believed costs the worker an attempt, since commits are fenced.
//
// It compares the owners of leases with the pods of one namespace, at the start, whenever something happens to a pod, and every now and
// then: so what happened while it was down, or while its watch was cut, is found all the same. Any number of replicas may run at once.
//
// An owner is dead when
//   - its container has terminated, for whatever reason: then its leases that began before that end;
//   - its pod runs a newer container: then its leases that began before the newer one started end;
//   - its pod has the phase Failed or Succeeded;
//   - its pod's object is gone: it was seen to be deleted, or the API server says that there is none of its name and UID.
//
// A pod that is about to end (it has a deletion timestamp, or the condition DisruptionTarget) is left alone, since it drains by itself; so is one
// on a node that does not answer, since their state is unknown. An error is never taken for a death. Containers other than the worker's are ignored:
// for that a worker in a pod of several containers has to say its container's name in CONTAINER_NAME.
package podwatch
