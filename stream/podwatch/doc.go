// Package podwatch ends the leases of workers whose pod or container has ended, so that their jobs are taken over within a second or two
// instead of when their leases run out. Nothing depends on it: an end that it misses costs the rest of a lease, and a false
// positive costs the worker an attempt, since commits are fenced.
//
// It compares the owners of leases with the pods of one namespace, at the start, at each change of a pod, and every Resync: changes
// that happened while it was down, or while its watch was disconnected, are found as well. Any number of replicas may run at once.
//
// An owner has ended when
//   - its container has terminated, for whatever reason: then its leases that began before that end;
//   - its pod runs a newer container: then its leases that began before the newer one started end;
//   - its pod has the phase Failed or Succeeded;
//   - its pod's object is gone: its deletion was observed, or the API server has none of its name and UID.
//
// A pod that is about to end (it has a deletion timestamp, or the condition DisruptionTarget) is left alone, since it drains by itself; so is one
// on a node that does not answer, since their state is unknown. An error is never taken for an end. Containers other than the worker's are ignored:
// for that a worker in a pod of several containers must have its container's name in CONTAINER_NAME.
package podwatch
