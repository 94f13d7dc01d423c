package v1alpha1

import (
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations that Levada reads from the metadata of a Pipeline or a MonoVertex. Where a vertex is named, a MonoVertex is
// named by its own name. Any other annotation under AnnotationPrefix is an error, so that a typing error is not ignored.
const (
	AnnotationPrefix = "levada.io/"

	// AnnotationFunction, followed by ".VERTEX" or ".VERTEX.ROLE", is the command line of the program that stands in for
	// the vertex's container when the pipeline runs on one machine. Without a role it is the container of the vertex's own
	// kind: udf, udsource or udsink.
	AnnotationFunction = AnnotationPrefix + "function"

	// AnnotationProcessingTimeout is the deadline of one function call, a Go duration. Followed by ".VERTEX" it concerns
	// that vertex only, and wins.
	AnnotationProcessingTimeout = AnnotationPrefix + "processing-timeout"

	// AnnotationBlockBytes is the size at which a block of a buffer ends, in bytes before compression: a number, or a quantity such as 512Ki. The
	// message that reaches it is still in the block. A MonoVertex has no buffers, so that it has no effect there and is refused.
	AnnotationBlockBytes = AnnotationPrefix + "block-bytes"

	// AnnotationShards is into how many shards each partition of a vertex is divided when "levada vertex" creates its buffer: 1 to 64, and at most 64 for all partitions of a
	// vertex together. Followed by ".VERTEX" it concerns that vertex only, and wins. A MonoVertex has no buffers, so that it has no effect there and is refused.
	AnnotationShards = AnnotationPrefix + "shards"
)

// MaxShards bounds the shards of all partitions of a vertex together.
const MaxShards = 64

// Bounds of AnnotationBlockBytes. Below, a block's own cost outweighs what it saves; above, brokers refuse it.
const (
	MinBlockBytes = 1 << 10
	MaxBlockBytes = 64 << 20
)

// Role is the place of a user's container in a vertex; the values are Numaflow's container names.
type Role string

// The roles of user's containers that a program can stand in for.
const (
	RoleUDF           Role = "udf"
	RoleTransformer   Role = "transformer"
	RoleUDSource      Role = "udsource"
	RoleUDSink        Role = "udsink"
	RoleFallbackSink  Role = "fb-udsink"
	RoleOnSuccessSink Role = "ons-udsink"
)

// Roles are all roles, in the order of their documentation.
func Roles() []Role {
	return []Role{RoleUDF, RoleTransformer, RoleUDSource, RoleUDSink, RoleFallbackSink, RoleOnSuccessSink}
}

// IsMain reports whether an annotation without a role means this container.
func (r Role) IsMain() bool { return r == RoleUDF || r == RoleUDSource || r == RoleUDSink }

// FunctionCommand is the command line of the program that stands in for the container of a vertex, "" when there is none.
func FunctionCommand(meta metav1.Object, vertex string, role Role) string {
	a := meta.GetAnnotations()
	if cmd, ok := a[AnnotationFunction+"."+vertex+"."+string(role)]; ok || !role.IsMain() {
		return cmd
	}
	return a[AnnotationFunction+"."+vertex]
}

// ProcessingTimeout is the deadline of one function call in a vertex. It is false when none is set or it is not valid.
func ProcessingTimeout(meta metav1.Object, vertex string) (time.Duration, bool) {
	a := meta.GetAnnotations()
	value, ok := a[AnnotationProcessingTimeout+"."+vertex]
	if !ok {
		value, ok = a[AnnotationProcessingTimeout]
	}
	if !ok {
		return 0, false
	}
	d, err := time.ParseDuration(value)
	return d, err == nil && d > 0
}

// Shards is how many shards each partition of a vertex gets. It is false when that is not set or not valid.
func Shards(meta metav1.Object, vertex string) (int, bool) {
	a := meta.GetAnnotations()
	value, ok := a[AnnotationShards+"."+vertex]
	if !ok {
		value, ok = a[AnnotationShards]
	}
	if !ok {
		return 0, false
	}
	return ParseShards(value)
}

// ParseShards reads the value of AnnotationShards. It is false if the value is not a number or out of bounds.
func ParseShards(value string) (int, bool) {
	n, err := strconv.Atoi(value)
	return n, err == nil && n >= 1 && n <= MaxShards
}

// BlockBytes is the size in bytes at which a block of a buffer ends. It is false when that is not set or not valid.
func BlockBytes(meta metav1.Object) (int64, bool) {
	value, ok := meta.GetAnnotations()[AnnotationBlockBytes]
	if !ok {
		return 0, false
	}
	return ParseBlockBytes(value)
}

// ParseBlockBytes reads the value of AnnotationBlockBytes. It is false if the value is not a quantity or out of bounds.
func ParseBlockBytes(value string) (int64, bool) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		q, err := resource.ParseQuantity(value)
		if err != nil {
			return 0, false
		}
		n = q.Value()
	}
	return n, n >= MinBlockBytes && n <= MaxBlockBytes
}
