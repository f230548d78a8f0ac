//! The nodes here know no topics. What real nodes do with them is tested where real nodes are.

use skein_proto::broker::{self, Reason, topics_server};
use tonic::{Code, Request, Response, Status};

use super::cluster::{Node, status};

const UNUSED: &str = "no test asks for it";

#[tonic::async_trait]
impl topics_server::Topics for Node {
    async fn create_topic(
        &self,
        _: Request<broker::CreateTopicRequest>,
    ) -> Result<Response<broker::CreateTopicResponse>, Status> {
        Err(Status::unimplemented(UNUSED))
    }

    async fn update_topic(
        &self,
        _: Request<broker::UpdateTopicRequest>,
    ) -> Result<Response<broker::UpdateTopicResponse>, Status> {
        Err(Status::unimplemented(UNUSED))
    }

    async fn delete_topic(
        &self,
        _: Request<broker::DeleteTopicRequest>,
    ) -> Result<Response<broker::DeleteTopicResponse>, Status> {
        Err(Status::unimplemented(UNUSED))
    }

    async fn get_topic(
        &self,
        _: Request<broker::GetTopicRequest>,
    ) -> Result<Response<broker::GetTopicResponse>, Status> {
        Err(status(Code::NotFound, Reason::TopicNotFound, "there is no such topic"))
    }

    async fn list_topics(
        &self,
        _: Request<broker::ListTopicsRequest>,
    ) -> Result<Response<broker::ListTopicsResponse>, Status> {
        Ok(Response::new(broker::ListTopicsResponse::default()))
    }

    async fn bind(&self, _: Request<broker::BindRequest>) -> Result<Response<broker::BindResponse>, Status> {
        Err(Status::unimplemented(UNUSED))
    }

    async fn unbind(
        &self,
        _: Request<broker::UnbindRequest>,
    ) -> Result<Response<broker::UnbindResponse>, Status> {
        Err(Status::unimplemented(UNUSED))
    }
}
