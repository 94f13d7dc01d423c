package stream

import (
	"crypto/rand"
	"fmt"
	"os"
	"time"
)

// Job is one stream to be read to its end, once.
type Job struct {
	// ID names the job. Submit makes one when it is empty.
	ID string `json:"id"`
	// Stream is the name of the stream at its producer. It also chooses the worker's handler.
	Stream string `json:"stream"`
	// Target says where the producer is, as grpc.NewClient takes it. Empty: the worker knows.
	Target string `json:"target,omitempty"`
	// Query holds the parameters of the stream, for its source.
	Query []byte `json:"query,omitempty"`
	// DedupeKey, when not empty, makes Submit return the job of the same stream that has this key already instead of making another; [ErrExists] if
	// that one has another Target or Query, so moves other records. Cancelled and purged jobs have no key any more.
	DedupeKey string `json:"dedupeKey,omitempty"`
	// Priority: jobs with a greater one are claimed first.
	Priority int `json:"priority,omitempty"`
	// NotBefore is when the job may start. Zero: at once.
	NotBefore time.Time `json:"notBefore,omitzero"`
	// OnBad says what happens to a record that cannot be processed.
	OnBad OnBad `json:"onBad,omitempty"`
	// MaxBad is how many records may go into quarantine before the job fails. 0: the worker's default; [None]: the first bad record fails
	// the job; [Unlimited]: it never fails for that.
	MaxBad int `json:"maxBad,omitempty"`
}

// OnBad says what happens to a record that cannot be processed: it panics its handler, kills its process, is refused
// with Skip, or could not be made by the producer.
type OnBad string

const (
	// Quarantine puts the record aside, with the reason, in the transaction that moves the offset, and goes on. The default.
	Quarantine OnBad = "quarantine"
	// HaltJob fails the job before the record.
	HaltJob OnBad = "halt"
)

// State is where a job is in its life.
type State string

// A job is ready until a worker claims it, then running; a worker that stops or gives way makes it ready again.
// Paused jobs wait for a person. The other three are final: only Retry leads out of them.
const (
	Ready     State = "ready"
	Running   State = "running"
	Paused    State = "paused"
	Completed State = "completed"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Final reports whether the job has ended.
func (s State) Final() bool { return s == Completed || s == Failed || s == Cancelled }

// Owner is a worker process.
type Owner struct {
	// Pod is a name for people: the pod's or the host's.
	Pod string `json:"pod,omitempty"`
	// PodUID tells pods of the same name apart. Empty outside Kubernetes.
	PodUID string `json:"podUid,omitempty"`
	// Container is the name of the worker's container in its pod. Empty: not known.
	Container string `json:"container,omitempty"`
	// Incarnation is random, and new at each start of the process. Only [Self] makes one by which other workers of the pod can tell whether
	// the process still lives: with another one, its leases run out by themselves.
	Incarnation string `json:"incarnation,omitempty"`
}

func (o Owner) String() string {
	if len(o.Incarnation) < 8 {
		return o.Pod
	}
	return o.Pod + "/" + o.Incarnation[:8]
}

// Self names this process: the pod from the environment variables POD_NAME, POD_UID and CONTAINER_NAME, which the
// downward API can set (see docs/streams.md), or else the host; and a new random incarnation. In a pod it binds an abstract Unix socket, until
// the process ends, in which nothing is said: that it is there tells the other workers of the pod that this process lives.
func Self() Owner {
	o := Owner{Pod: os.Getenv("POD_NAME"), PodUID: os.Getenv("POD_UID"), Container: os.Getenv("CONTAINER_NAME")}
	if o.PodUID != "" {
		o.Incarnation = newIncarnation()
	} else {
		o.Incarnation = NewID()
	}
	if o.Pod == "" {
		o.Pod, _ = os.Hostname()
	}
	return o
}

// NewID makes a random UUID (RFC 9562, version 4).
func NewID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Lease is the right to work on a job: a store gives it, and it ends when its time is over by the store's clock, unless it
// is renewed. Epoch grows with each owner and each cancel or pause; sinks refuse commits of older ones.
type Lease struct {
	Job   string
	Epoch uint64
	Owner Owner
}

// Progress is how far a job has come.
type Progress struct {
	// Records is the number of records accounted for: committed or in quarantine.
	Records uint64 `json:"records"`
	// Bytes is the size of their keys and values.
	Bytes uint64 `json:"bytes"`
	// Bad is how many of them are in quarantine.
	Bad uint64 `json:"bad"`
	// Size is how many records the stream has, or 0 if that is unknown.
	Size uint64 `json:"size,omitempty"`
}

// CrashState is what a store remembers of the crashes of a job's owners, so that a record that kills its process is found.
// The zero CrashState means that no record is suspected.
type CrashState struct {
	// BatchLimit is how many records the handler may get at once; 0: no limit but the worker's.
	BatchLimit int `json:"batchLimit,omitempty"`
	// SuspectUntil is the last record that is suspected. Once it is committed, the state is cleared.
	SuspectUntil uint64 `json:"suspectUntil,omitempty"`
	// InFlightSeq is the first record of the batch that the handler has, 0 between batches. A crash while it is set is blamed on
	// that batch; a crash while it is 0 is not. A number at or before the checkpoint's is that of a quarantined record being replayed.
	InFlightSeq uint64 `json:"inFlightSeq,omitempty"`
	// Crashes is how many processes crashed with record InFlightSeq alone in flight.
	Crashes int `json:"crashes,omitempty"`
}

// RetryState is what a store remembers of a job's attempts since the last record was committed, so that pauses and limits hold across claims,
// restarts and workers. The zero RetryState means that the last attempt made progress.
//
// The times are sums over attempts and the pauses after them: time in which no worker had the job does not count, so a job does not
// fail because all workers were off for the weekend.
type RetryState struct {
	// Failures is how many attempts in a row failed, whatever the reason. The pause before the next grows with it.
	Failures int `json:"failures,omitempty"`
	// NoProgress, Denied and Dependent are what counts towards the limits NoProgress, DeniedGrace and DependencyWait of [WorkerConfig].
	NoProgress time.Duration `json:"noProgressNs,omitempty"`
	Denied     time.Duration `json:"deniedNs,omitempty"`
	Dependent  time.Duration `json:"dependentNs,omitempty"`
}

// Status is a job, and all that its store knows of it.
type Status struct {
	Job
	State State  `json:"state"`
	Epoch uint64 `json:"epoch"`
	// Owner is who has, or had last, the lease.
	Owner      Owner     `json:"owner,omitzero"`
	LeaseUntil time.Time `json:"leaseUntil,omitzero"`
	// ClaimedAt is when the last lease began.
	ClaimedAt time.Time `json:"claimedAt,omitzero"`
	// Attempts is how often the job was claimed.
	Attempts int `json:"attempts"`
	// RetryState counts the attempts since the last progress, across owners.
	RetryState RetryState `json:"retryState,omitzero"`
	Progress   Progress   `json:"progress"`
	// Reason is a stable word for why the job is where it is, LastError the text for people. Those of a job that waits, or that is
	// tried again, are the reason of its last failure.
	Reason     Reason     `json:"reason,omitempty"`
	LastError  string     `json:"lastError,omitempty"`
	CrashState CrashState `json:"crashState,omitzero"`
	CreatedAt  time.Time  `json:"createdAt"`
	StartedAt  time.Time  `json:"startedAt,omitzero"`
	UpdatedAt  time.Time  `json:"updatedAt,omitzero"`
	FinishedAt time.Time  `json:"finishedAt,omitzero"`
	// Existed is set by Submit when the job was there already, by its ID or its DedupeKey.
	Existed bool `json:"existed,omitempty"`
	// Reclaimed is set by Claim when the job was taken from an owner that did not release it: its process crashed, or could not renew the lease.
	Reclaimed bool `json:"-"`
}

// Lease returns the lease that a claim gave.
func (s Status) Lease() Lease { return Lease{Job: s.ID, Epoch: s.Epoch, Owner: s.Owner} }
