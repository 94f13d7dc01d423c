package stream

import "slices"

// recent keeps values by the ID of a job, of the jobs that were put last. It is bounded, since another worker may finish a job without this one learning of
// it. The zero recent is empty.
//
// Invariant: order has each key of values once, the oldest first, and at most maxRecent of them.
type recent[V any] struct {
	values map[string]V
	order  []string
}

// maxRecent is how many jobs a recent has: many times as many as a worker has at once.
const maxRecent = 1000

// put keeps the value. When there is no room, the job that was put longest ago is evicted.
func (r *recent[V]) put(job string, v V) {
	r.remove(job)
	if len(r.order) == maxRecent {
		r.remove(r.order[0])
	}
	if r.values == nil {
		r.values = map[string]V{}
	}
	r.values[job] = v
	r.order = append(r.order, job)
}

func (r *recent[V]) get(job string) (V, bool) {
	v, ok := r.values[job]
	return v, ok
}

func (r *recent[V]) remove(job string) {
	if _, ok := r.values[job]; !ok {
		return
	}
	delete(r.values, job)
	r.order = slices.DeleteFunc(r.order, func(other string) bool { return other == job })
}
