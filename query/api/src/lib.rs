//! The wire forms of questions and answers: gRPC sluicebox.v1.TraceQuery
