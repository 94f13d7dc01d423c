package v1alpha1

// Edge sends the messages of one vertex to another.
type Edge struct {
	From string `json:"from"`
	To   string `json:"to"`

	// Conditions choose the messages that take this edge. Default: all of them. A message may take several edges.
	Conditions *ForwardConditions `json:"conditions,omitempty"`

	// OnFull says what happens to a message when the buffer behind this edge is full: retryUntilSuccess waits, and so pushes
	// back; discardLatest drops the message, and counts it. Default: retryUntilSuccess.
	OnFull *OnFull `json:"onFull,omitempty"`
}

// OnFull is what a writer does about a full buffer.
type OnFull string

// What a writer may do about a full buffer.
const (
	OnFullRetryUntilSuccess OnFull = "retryUntilSuccess"
	OnFullDiscardLatest     OnFull = "discardLatest"
)

// ForwardConditions choose messages by the tags that a function gave them.
type ForwardConditions struct {
	// Tags are compared with the tags of a message. A message without tags has the empty set, so that "not" is true for it.
	Tags *TagConditions `json:"tags,omitempty"`
}

// LogicOperator joins the values of a condition.
type LogicOperator string

// The operators of a condition.
const (
	LogicOperatorAnd LogicOperator = "and" // the message has every value
	LogicOperatorOr  LogicOperator = "or"  // the message has at least one value
	LogicOperatorNot LogicOperator = "not" // the message has none of the values
)

// TagConditions compare the tags of a message with Values.
type TagConditions struct {
	// Operator is and, or, not. Default: or.
	Operator *LogicOperator `json:"operator,omitempty"`

	// Values are the tags to look for, at least one.
	Values []string `json:"values,omitempty"`
}

// VertexType is the role of a vertex, and decides which pods it gets.
type VertexType string

// The roles of a vertex.
const (
	VertexTypeSource    VertexType = "Source"
	VertexTypeSink      VertexType = "Sink"
	VertexTypeMapUDF    VertexType = "MapUDF"
	VertexTypeReduceUDF VertexType = "ReduceUDF"
)

// CombinedEdge is an Edge with what a vertex must know about both its ends. It is in Vertex objects only.
type CombinedEdge struct {
	Edge `json:",inline"`

	FromVertexType           VertexType    `json:"fromVertexType,omitempty"`
	FromVertexPartitionCount *int32        `json:"fromVertexPartitionCount,omitempty"`
	FromVertexLimits         *VertexLimits `json:"fromVertexLimits,omitempty"`
	ToVertexType             VertexType    `json:"toVertexType,omitempty"`
	ToVertexPartitionCount   *int32        `json:"toVertexPartitionCount,omitempty"`
	ToVertexLimits           *VertexLimits `json:"toVertexLimits,omitempty"`
	ToVertexOrdered          bool          `json:"toVertexOrdered,omitempty"`
}
